"""The endpoints of jobs: submit, list, show, cancel, resume, delete, events."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Body, Depends, FastAPI, Header, Query
from fastapi import Path as InPath
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ...errors import UsageError
from ...runtime.bundle.manifest import Manifest
from ...runtime.media.read_image import read_image
from ...runtime.sampling.noise import random_seed
from ...runtime.videos.request import check_last, takes_text_alone
from .. import schema
from ..failures import Refused
from ..kept.inputs import NONE, Inputs, check_mask, check_references, mask_sent, named, reduced, sent
from ..kept.store import Job
from ..runner import Runner

Identifier = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="A job's identifier.")]
NOT_ARGUMENTS = {"kind", "bundle", "image", "image_job", "mask", "references", "last", "width", "height"}
State = Literal["waiting", "running", "done", "failed", "cancelled"]


def job_in_path(runner: Runner) -> Any:
    """Return the type of a parameter: the job that the path names."""

    def job(identifier: Identifier) -> Job:
        return found(runner, identifier)

    return Annotated[Job, Depends(job)]


def found(runner: Runner, identifier: str) -> Job:
    """Return a job; raises Refused with 404 if there is no such job."""
    job = runner.store.get(identifier)
    if job is None:
        raise Refused(404, f"there is no job {identifier!r}. List the jobs at /v1/jobs.")
    return job


def add_jobs(app: FastAPI, runner: Runner, known: Any) -> None:
    """Add the endpoints; `known` is the type that `job_in_path` returns."""

    @app.post("/v1/jobs", status_code=202)
    def create(wanted: Annotated[schema.JobRequest, Body()]) -> schema.JobView:
        """Accept a job. The answer comes after the job is on disk, so it survives the server."""
        name = runner.find(wanted.kind, wanted.bundle)  # checked before a picture is decoded
        runner.check_room()
        return _view(runner, runner.submit(wanted.kind, name, arguments(wanted), _inputs(runner, wanted, name)))

    @app.get("/v1/jobs")
    def jobs(limit: Annotated[int, Query(ge=1, le=200)] = 50, state: State | None = None) -> schema.JobList:
        """List jobs, newest first."""
        return schema.JobList(jobs=[_view(runner, job) for job in runner.store.newest(limit, state)])

    @app.get("/v1/jobs/{identifier}")
    def show(job: known) -> schema.JobView:
        """Show a job."""
        return _view(runner, job)

    @app.delete("/v1/jobs/{identifier}", status_code=204)
    async def delete(job: known) -> None:
        """Remove a job and its files. A job that waits or runs is cancelled first."""
        feed = await asyncio.to_thread(runner.feed, job.id)
        if feed is not None:
            await asyncio.to_thread(runner.cancel, job.id)
            async for _ in feed.read():
                pass
        await asyncio.to_thread(runner.remove, job.id)

    @app.post("/v1/jobs/{identifier}/cancel")
    def cancel(job: known) -> schema.JobView:
        """Stop a job before its next network call. A finished job does not change."""
        return _view(runner, runner.cancel(job.id) or job)

    @app.post("/v1/jobs/{identifier}/resume")
    def resume(job: known) -> schema.JobView:
        """Queue a cancelled or failed job again. A video continues after its last finished segment."""
        return _view(runner, runner.resume(job.id) or job)

    @app.get("/v1/jobs/{identifier}/events", response_class=EventSourceResponse)
    async def events(
        job: known, last_event_id: Annotated[str | None, Header(max_length=40)] = None
    ) -> AsyncIterator[ServerSentEvent]:
        """Stream a job's events: state, step, preview, picture, call, frames; last done, failed or cancelled."""
        feed = await asyncio.to_thread(runner.feed, job.id)
        if feed is None:
            over = await asyncio.to_thread(runner.store.get, job.id) or job  # it may be deleted by now
            yield ServerSentEvent(event=over.state, data={"files": over.files, "error": over.error})
            return
        async for event in feed.read(feed.after(last_event_id)):
            yield ServerSentEvent(event=event.name, id=f"{feed.mark}-{event.number}", data=event.values)


def arguments(wanted: schema.PictureRequest | schema.VideoRequest) -> dict[str, Any]:
    """Return the arguments of Request or AnimationRequest; a seed that is left out is drawn."""
    given = wanted.model_dump(exclude_none=True, exclude=NOT_ARGUMENTS)
    given.setdefault("seed", random_seed())
    if not given["loras"]:
        del given["loras"]
    if (wanted.width is None) != (wanted.height is None):
        raise UsageError(f"width = {wanted.width}, height = {wanted.height}: one is missing. Give both or neither.")
    return given if wanted.width is None else given | {"size": [wanted.height, wanted.width]}


def _inputs(runner: Runner, wanted: schema.PictureRequest | schema.VideoRequest, name: str) -> Inputs:
    """Return the pictures of a request to the bundle called `name`."""
    if isinstance(wanted, schema.VideoRequest):
        return _video_inputs(runner, wanted, runner.models[name].bundle.manifest)
    if wanted.image is not None and wanted.image_job is not None:
        raise UsageError("a picture begins with one picture. Send either image or image_job.")
    if (wanted.image, wanted.image_job, wanted.mask, wanted.references) == (None, None, None, []):
        return NONE
    content = runner.models[name].bundle.manifest
    check_references(len(wanted.references), content, name, wanted.mask is not None)
    with runner.decoding:
        image = _image(runner, wanted)
        mask = None if wanted.mask is None else mask_sent(wanted.mask)
        if mask is not None and image is not None:
            check_mask(mask, image)
        pairs = enumerate(wanted.references, 1)
        return Inputs(image, mask, tuple(reduced(sent(f"reference {number}", one), content) for number, one in pairs))


def _video_inputs(runner: Runner, wanted: schema.VideoRequest, content: Manifest) -> Inputs:
    """Return the pictures of a request for a video."""
    given = [one for one in (wanted.image, wanted.image_job) if one is not None]
    if len(given) != 1 and (given or not takes_text_alone(content)):
        raise UsageError("a video needs one picture. Send either image or image_job.")
    if wanted.last is not None:
        assert content.video is not None
        check_last(content, content.video.frames if wanted.frames is None else wanted.frames)
    if not given:
        return NONE
    with runner.decoding:
        last = None if wanted.last is None else sent("last picture", wanted.last)
        return Inputs(_image(runner, wanted), last=last)


def _image(runner: Runner, wanted: schema.PictureRequest | schema.VideoRequest) -> np.ndarray | None:
    """Return the picture that a request begins with, uint8 [height, width, 3]; None if it names none."""
    if wanted.image_job is not None:
        source = runner.store.get(wanted.image_job)
        if source is None or source.kind != "picture" or not source.files:
            raise UsageError(f"the job {wanted.image_job!r} has no picture. Name a picture job that is done.")
        return read_image(runner.place(source.id) / source.files[0], name="the picture of that job")
    return None if wanted.image is None else sent("image", wanted.image)


def _view(runner: Runner, job: Job) -> schema.JobView:
    files = [f"v1/jobs/{job.id}/files/{name}" for name in job.files]
    request = named(runner.place(job.id), job.kind, job.request)
    return schema.JobView(**(dataclasses.asdict(job) | {"files": files, "request": request}))
