"""The HTTP application: its endpoints, their page at /docs, and the web page."""

import hmac
import importlib.metadata
import mimetypes
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles

from . import schema
from .endpoints.edits import add_edits
from .endpoints.images import add_images
from .endpoints.jobs import add_jobs, job_in_path
from .endpoints.models import add_models
from .endpoints.results import add_results
from .failures import FAILURES, Refused, add_failures
from .guards import COOKIE, Guards, cookie_of
from .runner import Runner

MAX_BODY = 48 << 20  # bytes: a picture of 32 MiB in base64, and the rest of its request
PAGE = Path(__file__).parent / "page"
DOCS = (
    "/docs", "/openapi.json", "/swagger/swagger-ui-bundle.js", "/swagger/swagger-ui.css", "/swagger/favicon-32x32.png",
)  # fmt: skip
ABOUT = """Few-step diffusion on this machine: pictures and videos as jobs, and OpenAI's image endpoints.

Errors have one form: `{"error": {"message", "type", "param", "code"}}`."""


def create_app(
    runner: Runner, token: str | None = None, largest: int = MAX_BODY, local: bool = True, hosts: tuple[str, ...] = (),
) -> FastAPI:  # fmt: skip
    """Return the application for a runner. The caller closes the runner.

    `local`: answer only requests to a loopback name or to one of `hosts`. `token`: answer only requests that send it;
    what says nothing of this machine or its jobs needs none. `largest` is the largest body in bytes.
    """
    version = importlib.metadata.version("segue")
    bearer = HTTPBearer(auto_error=False, description="The token that segue serve was started with.")
    app = FastAPI(
        title="Segue", version=version, description=ABOUT, responses=FAILURES, docs_url=None, redoc_url=None,
        swagger_ui_oauth2_redirect_url=None, dependencies=[Depends(bearer)] if token else [],
    )  # fmt: skip
    page = {f"/{path.name}" for path in PAGE.iterdir()}
    public = ("/", "/health", "/v1/session", *DOCS, *page)
    app.add_middleware(Guards, token=token, largest=largest, public=public, local=local, hosts=hosts)
    mimetypes.add_type("text/javascript", ".js")  # the registry of Windows may say text/plain
    mimetypes.add_type("image/webp", ".webp")
    add_failures(app)
    _add_health(app, version)
    _add_session(app, token)
    known = job_in_path(runner)
    add_jobs(app, runner, known)
    add_results(app, runner, known)
    add_models(app, runner)
    add_images(app, runner)
    add_edits(app, runner)
    _add_docs(app)
    app.mount("/", _Page(directory=PAGE, html=True))
    return app


class _Page(StaticFiles):
    """The files of the web page. A browser asks each time whether one has changed, so it mixes no two versions."""

    def file_response(self, *given: Any, **named: Any) -> Response:
        answer = super().file_response(*given, **named)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def _add_health(app: FastAPI, version: str) -> None:
    @app.get("/health")
    def health() -> schema.Health:
        """Say that the server answers. It needs no token."""
        return schema.Health(version=version)


def _add_session(app: FastAPI, token: str | None) -> None:
    @app.post("/v1/session", status_code=204)
    def session(given: Annotated[str, Body(embed=True, alias="token", max_length=1000)], response: Response) -> None:
        """Check the server's token and set a cookie for the web page."""
        if token is None or not hmac.compare_digest(given.encode(), token.encode()):
            raise Refused(401, "the token is wrong. Use the one that segue serve was started with.")
        response.set_cookie(COOKIE, cookie_of(token), httponly=True, samesite="strict")


def _add_docs(app: FastAPI) -> None:
    """Add Swagger UI at /docs. Its files come with fastapi-swagger, so that a browser asks no other host."""
    from fastapi_swagger import patch_fastapi

    look = {"tryItOutEnabled": True, "persistAuthorization": True, "validatorUrl": None}
    patch_fastapi(app, DOCS[0], redirect_from_root_to_docs=False, title="Segue's endpoints", swagger_ui_parameters=look)
