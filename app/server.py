"""The HTTP side: every endpoint, the errors that they answer, and the web page."""

import asyncio
import base64
import binascii
import dataclasses
import hmac
import io
import mimetypes
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Body, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ..errors import BudgetError, BusyError, OutputError, SegueError, UsageError
from ..runtime.media.read_image import read_image
from ..runtime.units import size_of
from ..runtime.videos.request import AnimationRequest
from . import schema
from .guards import COOKIE, Guards, cookie_of
from .makers import VIDEO, kind_of, picture_request
from .runner import DEFECT, Runner, defect_of
from .store import DONE, RUNNING, STATES, WAITING, Job

READERS = 32  # of videos that grow
MAX_BODY = 48 << 20  # bytes: a picture of 32 MiB in base64, and what is around it
PAGE = Path(__file__).parent / "page"
STATUS: dict[type[SegueError], int] = {UsageError: 422, BudgetError: 422, BusyError: 429, OutputError: 507}

Identifier = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="A job's identifier.")]
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": schema.Failure, "description": text}
    for code, text in {
        400: "No JSON", 401: "A token is needed", 403: "From another site", 404: "No such thing", 413: "Too large",
        409: "Not in this state", 422: "It cannot be met as asked", 429: "The queue is full",
        500: "A defect of Segue", 507: "The disk is full",
    }.items()
}  # fmt: skip


def create_app(runner: Runner, token: str | None = None, largest: int = MAX_BODY, local: bool = True) -> FastAPI:
    """Return the application around a runner, which stays the caller's to close.

    With `local` it answers only requests to a loopback name; with a `token` only those that send it.
    """
    app = FastAPI(
        title="Segue", version="1", description="Few-step diffusion on this machine: pictures and videos as jobs.",
        responses=FAILURES, docs_url=None, redoc_url=None,
    )  # fmt: skip
    public = ("/", "/page.js", "/page.css", "/v1/session")
    app.add_middleware(Guards, token=token, largest=largest, public=public, local=local)
    mimetypes.add_type("text/javascript", ".js")  # Windows' registry may call it text
    app.add_exception_handler(SegueError, _failed)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _defect)
    _add_session(app, token)
    known = _known(runner)
    _add_jobs(app, runner, known)
    _add_results(app, runner, known)
    _add_models(app, runner)
    _add_images(app, runner)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _add_session(app: FastAPI, token: str | None) -> None:
    @app.post("/v1/session", status_code=204)
    def session(given: Annotated[str, Body(embed=True, alias="token", max_length=1000)], response: Response) -> None:
        """Take the server's token and set it as a cookie, for the web page."""
        if token is None or not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "the token is wrong. Take it from where segue serve was started.")
        response.set_cookie(COOKIE, cookie_of(token), httponly=True, samesite="strict")


def _known(runner: Runner) -> Any:
    """Return the type of a parameter that is the job whose identifier the path holds."""

    def job(identifier: Identifier) -> Job:
        return _found(runner, identifier)

    return Annotated[Job, Depends(job)]


def _add_jobs(app: FastAPI, runner: Runner, known: Any) -> None:
    decoding = threading.Semaphore()

    @app.post("/v1/jobs", status_code=202)
    def create(wanted: Annotated[schema.JobRequest, Body()]) -> schema.JobView:
        """Accept a job. It is on disk when this answers, and outlives the server."""
        if isinstance(wanted, schema.PictureRequest):
            return _view(runner.submit(wanted.kind, wanted.bundle, _arguments(wanted)))
        name = runner.find(wanted.kind, wanted.bundle)  # before the picture is decoded
        runner.check_room()
        with decoding:  # one at a time: each may take hundreds of MB
            image = _input(runner, wanted)
        return _view(runner.submit(wanted.kind, name, _arguments(wanted), image))

    @app.get("/v1/jobs")
    def jobs(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        state: Annotated[str | None, Query(pattern=f"^({'|'.join(STATES)})$")] = None,
    ) -> schema.JobList:
        """List jobs, newest first."""
        return schema.JobList(jobs=[_view(job) for job in runner.store.newest(limit, state)])

    @app.get("/v1/jobs/{identifier}")
    def show(job: known) -> schema.JobView:
        """Show a job."""
        return _view(job)

    @app.post("/v1/jobs/{identifier}/cancel")
    def cancel(job: known) -> schema.JobView:
        """Stop a job before its next network call; one that is over stays as it is."""
        return _view(runner.cancel(job.id) or job)

    @app.post("/v1/jobs/{identifier}/resume")
    def resume(job: known) -> schema.JobView:
        """Queue a cancelled or failed job again; a video goes on after its last finished segment."""
        return _view(runner.resume(job.id) or job)

    @app.get("/v1/jobs/{identifier}/events", response_class=EventSourceResponse)
    async def events(
        job: known, last_event_id: Annotated[str | None, Header(max_length=40)] = None
    ) -> AsyncIterator[ServerSentEvent]:
        """Follow a job: state, step, preview, picture, call, frames; the last is done, failed or cancelled."""
        feed = await asyncio.to_thread(runner.feed, job.id)
        if feed is None:
            over = await asyncio.to_thread(_found, runner, job.id)
            yield ServerSentEvent(event=over.state, data={"files": over.files, "error": over.error})
            return
        async for told in feed.read(feed.after(last_event_id)):
            yield ServerSentEvent(event=told.name, id=f"{feed.mark}-{told.number}", data=told.values)


def _add_results(app: FastAPI, runner: Runner, known: Any) -> None:
    reading = asyncio.Semaphore(READERS)

    @app.get("/v1/jobs/{identifier}/files/{name}", response_class=FileResponse)
    def file(job: known, name: Annotated[str, InPath(max_length=64)]) -> FileResponse:
        """Give a file of a job as soon as it is whole."""
        place = runner.place(job.id)
        whole = {path.name for path in place.glob("picture-*.png")} | ({VIDEO} if job.state == DONE else set())
        if name not in whole or not (place / name).is_file():
            raise HTTPException(404, f"the job {job.id} has no file {name!r}. See its files.")
        return FileResponse(place / name)

    @app.get("/v1/jobs/{identifier}/video", response_class=StreamingResponse)
    async def video(job: known) -> Response:
        """Give a video while it is made: a fragmented MP4 that grows, whole when the job is done."""
        if job.kind != "video":
            raise HTTPException(404, f"the job {job.id} draws pictures. See its files.")
        whole = runner.place(job.id) / VIDEO
        if job.state == DONE:
            if not whole.is_file():
                raise HTTPException(404, f"the video of the job {job.id} was removed. Ask for it again.")
            return FileResponse(whole, media_type="video/mp4")
        if reading.locked():
            raise BusyError(f"{READERS} videos are being read while they are made. Read this one when it is done.")
        headers = {"Cache-Control": "no-store"}  # what it is when it is done has other bytes
        return StreamingResponse(_growing(runner, job.id, reading), media_type="video/mp4", headers=headers)


def _add_models(app: FastAPI, runner: Runner) -> None:
    @app.get("/v1/models")
    def models() -> schema.ModelList:
        """List the bundles of this server."""
        found = []
        for name, model in runner.models.items():
            content = model.bundle.manifest
            height, width = content.sizes.default
            found.append(
                schema.ModelView(
                    id=name, created=0, owned_by="segue", kind=kind_of(model), width=width, height=height,  # type: ignore[arg-type]
                    multiple=content.sizes.multiple, steps=content.sampler.steps,
                    frames=None if content.video is None else content.video.frames,
                )
            )  # fmt: skip
        return schema.ModelList(data=found)

    @app.post("/v1/plan")
    def plan(wanted: schema.JobRequest) -> schema.PlanView:
        """Say what a job takes of memory and time, phase by phase, before it is asked for; videos need no image."""
        model, given = runner.models[runner.find(wanted.kind, wanted.bundle)], _arguments(wanted)
        if wanted.kind == "picture":
            made = model.plan(picture_request(given))
        else:
            height, width = given.get("size", model.bundle.manifest.sizes.default)
            made = model.plan(AnimationRequest(np.zeros((height, width, 3), np.uint8), **given))
        phases = [
            schema.PhaseView(component=phase.component, calls=phase.calls, seconds=phase.seconds, peak=phase.peak)
            for phase in made.phases
        ]
        return schema.PlanView(
            peak=made.peak, budget=made.budget, seconds=made.seconds, keep=list(made.keep), phases=phases
        )


def _add_images(app: FastAPI, runner: Runner) -> None:
    @app.post("/v1/images/generations")
    async def generations(wanted: schema.ImagesRequest, http: Request) -> schema.ImagesAnswer:
        """Draw pictures as OpenAI's endpoint does: the answer waits for them. Leaving cancels the job."""
        request: dict[str, Any] = {"prompt": wanted.prompt, "seed": wanted.seed or 0, "count": wanted.n or 1}
        if wanted.size not in (None, "auto"):
            request["size"] = list(size_of(wanted.size))
        job = await asyncio.to_thread(runner.submit, "picture", wanted.model, request)
        job = await _finished(runner, job.id, http)
        if job.state != DONE:
            if job.error is None:
                raise HTTPException(409, f"the job {job.id} was cancelled. Ask again.")
            kinds = {kind.__name__: code for kind, code in STATUS.items()}
            raise HTTPException(kinds.get(job.error["kind"], 500), job.error["message"])
        data, place = [], runner.place(job.id)
        for name in job.files:
            if wanted.response_format == "url":
                data.append(schema.ImageView(url=f"{http.base_url}v1/jobs/{job.id}/files/{name}"))
            else:
                data.append(schema.ImageView(b64_json=base64.b64encode((place / name).read_bytes()).decode()))
        height, width = request.get("size", runner.models[job.bundle].bundle.manifest.sizes.default)
        return schema.ImagesAnswer(created=int(job.created), data=data, size=f"{width}x{height}")


async def _finished(runner: Runner, identifier: str, http: Request) -> Job:
    feed = await asyncio.to_thread(runner.feed, identifier)

    async def over() -> None:
        if feed is not None:
            async for _ in feed.read():
                pass

    waiting = asyncio.create_task(over())
    while not waiting.done():
        await asyncio.wait([waiting], timeout=0.25)
        if not waiting.done() and await http.is_disconnected():
            await asyncio.to_thread(runner.cancel, identifier)
            break
    await waiting
    return _found(runner, identifier)


async def _growing(runner: Runner, identifier: str, reading: asyncio.Semaphore) -> AsyncIterator[bytes]:
    """Yield the bytes of a video from its first on, as they are written, until its job is over."""
    place = runner.place(identifier)
    growing, whole = place / f"{Path(VIDEO).stem}.part.mp4", place / VIDEO

    def state() -> str:
        return _found(runner, identifier).state

    async with reading:
        while not growing.exists() and await asyncio.to_thread(state) in (WAITING, RUNNING):
            await asyncio.sleep(0.05)
        path = growing if growing.exists() else whole
        if not path.exists():
            return
        with path.open("rb") as file:
            while True:
                over = await asyncio.to_thread(state) not in (WAITING, RUNNING)  # asked before the last reading
                while chunk := await asyncio.to_thread(file.read, 1 << 16):
                    yield chunk
                if over or path == whole:
                    return
                await asyncio.sleep(0.05)


def _found(runner: Runner, identifier: str) -> Job:
    job = runner.store.get(identifier)
    if job is None:
        raise HTTPException(404, f"there is no job {identifier!r}. List them at /v1/jobs.")
    return job


def _arguments(wanted: schema.PictureRequest | schema.VideoRequest) -> dict[str, Any]:
    """Return what the request says, as the arguments of Request or AnimationRequest."""
    given = wanted.model_dump(exclude_none=True, exclude={"kind", "bundle", "image", "image_job", "width", "height"})
    if (wanted.width is None) != (wanted.height is None):
        raise UsageError(f"width = {wanted.width}, height = {wanted.height}: one is missing. Give both, or neither.")
    return given if wanted.width is None else given | {"size": [wanted.height, wanted.width]}


def _input(runner: Runner, wanted: schema.VideoRequest) -> np.ndarray:
    """Return the picture that a video begins with."""
    if (wanted.image is None) == (wanted.image_job is None):
        raise UsageError("a video needs one picture. Send either image or image_job.")
    if wanted.image_job is not None:
        source = runner.store.get(wanted.image_job)
        if source is None or source.kind != "picture" or not source.files:
            raise UsageError(f"the job {wanted.image_job!r} has drawn no picture. Name one that is done.")
        return read_image(runner.place(source.id) / source.files[0])
    assert wanted.image is not None
    text = wanted.image.partition(",")[2] if wanted.image.startswith("data:") else wanted.image
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"image is no base64: {error}. Send the file's bytes in base64.") from None
    return read_image(io.BytesIO(data), name="the image that was sent")


def _view(job: Job) -> schema.JobView:
    values = dataclasses.asdict(job) | {"files": [f"v1/jobs/{job.id}/files/{name}" for name in job.files]}
    return schema.JobView(**values)


def _body(status: int, message: str, kind: str, param: str | None = None) -> JSONResponse:
    fault = schema.Failure(error=schema.Fault(message=message, type=kind, param=param))
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse(fault.model_dump(), status, headers)


def _failed(http: Request, error: Exception) -> JSONResponse:
    kinds: Iterator[int] = (code for kind, code in STATUS.items() if isinstance(error, kind))
    return _body(next(kinds, 500), str(error), type(error).__name__)


def _malformed(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    keys = first["loc"][2 if first["loc"][1:2] in (("picture",), ("video",)) else 1 :]  # the union's tag is no key
    place = ".".join(map(str, keys)) or None
    if first["loc"][0] == "path":
        return _body(404, f"there is no job {first['input']!r}. List them at /v1/jobs.", "HTTPException", place)
    if first["type"] == "extra_forbidden":
        said = f"the key {place} is unknown; known are {_keys_of(first['loc'])}. Leave it out."
    elif first["type"] in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type"):
        said = 'the body is no JSON object of a known "kind", picture or video, sent as Content-Type: application/json.'
        said += " Send it so."
    elif first["type"] == "json_invalid":
        said = f"the body is no JSON: {first['ctx']['error']}, at character {place}. Mend that, then send it again."
    else:
        given = "" if first["type"] == "missing" else f" = {_short(first['input'])}"
        said = f"{place or 'the body'}{given}: {first['msg']}. Mend that, then send it again."
    return _body(422, said, "UsageError", place)


def _keys_of(place: tuple[Any, ...]) -> str:
    known = {"picture": schema.PictureRequest.model_fields, "video": schema.VideoRequest.model_fields}
    return ", ".join(known.get(place[1], ["those of /openapi.json"]))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _defect(http: Request, error: Exception) -> JSONResponse:
    return _body(500, defect_of(error), DEFECT)


def _refused(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _body(error.status_code, str(error.detail), "HTTPException")
