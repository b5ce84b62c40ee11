"""The HTTP application: its endpoints and the web page."""

import asyncio
import base64
import binascii
import dataclasses
import hmac
import io
import mimetypes
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Body, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ..errors import BusyError, UsageError
from ..runtime.media.read_image import read_image
from ..runtime.units import size_of
from ..runtime.videos.request import AnimationRequest
from . import schema
from .failures import FAILURES, STATUS, add_failures
from .guards import COOKIE, Guards, cookie_of
from .job_work import VIDEO, kind_of, picture_request
from .runner import Runner
from .store import DONE, RUNNING, STATES, WAITING, Job

READERS = 32  # most connections that read growing videos
MAX_BODY = 48 << 20  # bytes: a picture of 32 MiB in base64, and the rest of its request
PAGE = Path(__file__).parent / "page"
Identifier = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="A job's identifier.")]


def create_app(runner: Runner, token: str | None = None, largest: int = MAX_BODY, local: bool = True) -> FastAPI:
    """Return the application for a runner. The caller closes the runner.

    `local`: answer only requests to a loopback name. `token`: answer only requests that send it. `largest` is the
    largest body in bytes.
    """
    app = FastAPI(
        title="Segue", version="1", description="Few-step diffusion on this machine: pictures and videos as jobs.",
        responses=FAILURES, docs_url=None, redoc_url=None,
    )  # fmt: skip
    public = ("/", "/page.js", "/page.css", "/v1/session")
    app.add_middleware(Guards, token=token, largest=largest, public=public, local=local)
    mimetypes.add_type("text/javascript", ".js")  # the registry of Windows may say text/plain
    add_failures(app)
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
        """Check the server's token and set a cookie for the web page."""
        if token is None or not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "the token is wrong. Use the one that segue serve was started with.")
        response.set_cookie(COOKIE, cookie_of(token), httponly=True, samesite="strict")


def _known(runner: Runner) -> Any:
    """Return the type of a parameter: the job that the path names."""

    def job(identifier: Identifier) -> Job:
        return _found(runner, identifier)

    return Annotated[Job, Depends(job)]


def _add_jobs(app: FastAPI, runner: Runner, known: Any) -> None:
    decoding = threading.Semaphore()

    @app.post("/v1/jobs", status_code=202)
    def create(wanted: Annotated[schema.JobRequest, Body()]) -> schema.JobView:
        """Accept a job. The answer comes after the job is on disk, so it survives the server."""
        if isinstance(wanted, schema.PictureRequest):
            return _view(runner.submit(wanted.kind, wanted.bundle, _arguments(wanted)))
        name = runner.find(wanted.kind, wanted.bundle)  # checked before the picture is decoded
        runner.check_room()
        with decoding:  # one at a time, because each may take hundreds of MB
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
        """Stop a job before its next network call. A finished job does not change."""
        return _view(runner.cancel(job.id) or job)

    @app.post("/v1/jobs/{identifier}/resume")
    def resume(job: known) -> schema.JobView:
        """Queue a cancelled or failed job again. A video continues after its last finished segment."""
        return _view(runner.resume(job.id) or job)

    @app.get("/v1/jobs/{identifier}/events", response_class=EventSourceResponse)
    async def events(
        job: known, last_event_id: Annotated[str | None, Header(max_length=40)] = None
    ) -> AsyncIterator[ServerSentEvent]:
        """Stream a job's events: state, step, preview, picture, call, frames; last done, failed or cancelled."""
        feed = await asyncio.to_thread(runner.feed, job.id)
        if feed is None:
            over = await asyncio.to_thread(_found, runner, job.id)
            yield ServerSentEvent(event=over.state, data={"files": over.files, "error": over.error})
            return
        async for event in feed.read(feed.after(last_event_id)):
            yield ServerSentEvent(event=event.name, id=f"{feed.mark}-{event.number}", data=event.values)


def _add_results(app: FastAPI, runner: Runner, known: Any) -> None:
    reading = asyncio.Semaphore(READERS)

    @app.get("/v1/jobs/{identifier}/files/{name}", response_class=FileResponse)
    def file(job: known, name: Annotated[str, InPath(max_length=64)]) -> FileResponse:
        """Send a file of a job. A file is available as soon as it is complete."""
        place = runner.place(job.id)
        whole = {path.name for path in place.glob("picture-*.png")} | ({VIDEO} if job.state == DONE else set())
        if name not in whole or not (place / name).is_file():
            raise HTTPException(404, f"the job {job.id} has no file {name!r}. See the job's files.")
        return FileResponse(place / name)

    @app.get("/v1/jobs/{identifier}/video", response_class=StreamingResponse)
    async def video(job: known) -> Response:
        """Send a video while it is made: a fragmented MP4 that grows until the job is done."""
        if job.kind != "video":
            raise HTTPException(404, f"the job {job.id} draws pictures, not a video. See the job's files.")
        whole = runner.place(job.id) / VIDEO
        if job.state == DONE:
            if not whole.is_file():
                raise HTTPException(404, f"the video of the job {job.id} was removed. Send the request again.")
            return FileResponse(whole, media_type="video/mp4")
        if reading.locked():
            raise BusyError(
                f"{READERS} connections already read unfinished videos. Read this one when its job is done."
            )
        headers = {"Cache-Control": "no-store"}  # the finished file has other bytes
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
        """Return the memory and time that a job would need, phase by phase. A video needs no image here."""
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
        """Draw pictures as OpenAI's endpoint does: the answer holds them. Closing the connection cancels the job."""
        request: dict[str, Any] = {"prompt": wanted.prompt, "seed": wanted.seed or 0, "count": wanted.n or 1}
        if wanted.size not in (None, "auto"):
            request["size"] = list(size_of(wanted.size))
        job = await asyncio.to_thread(runner.submit, "picture", wanted.model, request)
        job = await _finished(runner, job.id, http)
        if job.state != DONE:
            if job.error is None:
                raise HTTPException(409, f"the job {job.id} was cancelled. Send the request again.")
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
    """Yield the bytes of a video from the first, as they are written, until its job is over."""
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
                over = await asyncio.to_thread(state) not in (WAITING, RUNNING)  # before the last read
                while chunk := await asyncio.to_thread(file.read, 1 << 16):
                    yield chunk
                if over or path == whole:
                    return
                await asyncio.sleep(0.05)


def _found(runner: Runner, identifier: str) -> Job:
    job = runner.store.get(identifier)
    if job is None:
        raise HTTPException(404, f"there is no job {identifier!r}. List the jobs at /v1/jobs.")
    return job


def _arguments(wanted: schema.PictureRequest | schema.VideoRequest) -> dict[str, Any]:
    """Return the arguments of Request or AnimationRequest."""
    given = wanted.model_dump(exclude_none=True, exclude={"kind", "bundle", "image", "image_job", "width", "height"})
    if (wanted.width is None) != (wanted.height is None):
        raise UsageError(f"width = {wanted.width}, height = {wanted.height}: one is missing. Give both or neither.")
    return given if wanted.width is None else given | {"size": [wanted.height, wanted.width]}


def _input(runner: Runner, wanted: schema.VideoRequest) -> np.ndarray:
    """Return the picture that a video begins with."""
    if (wanted.image is None) == (wanted.image_job is None):
        raise UsageError("a video needs one picture. Send either image or image_job.")
    if wanted.image_job is not None:
        source = runner.store.get(wanted.image_job)
        if source is None or source.kind != "picture" or not source.files:
            raise UsageError(f"the job {wanted.image_job!r} has no picture. Name a picture job that is done.")
        return read_image(runner.place(source.id) / source.files[0])
    assert wanted.image is not None
    text = wanted.image.partition(",")[2] if wanted.image.startswith("data:") else wanted.image
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"image is not valid base64: {error}. Send the bytes of the file in base64.") from None
    return read_image(io.BytesIO(data), name="the image that was sent")


def _view(job: Job) -> schema.JobView:
    values = dataclasses.asdict(job) | {"files": [f"v1/jobs/{job.id}/files/{name}" for name in job.files]}
    return schema.JobView(**values)
