"""The endpoints of what a job makes: its files, and a video while it grows."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, StreamingResponse

from ...errors import BusyError
from ..failures import Refused
from ..job_work import PICTURES, VIDEO
from ..kept.inputs import INPUT, LAST, MASK, REFERENCES
from ..kept.store import DONE, RUNNING, WAITING
from ..runner import Runner

READERS = 32  # most connections that read growing videos


def add_results(app: FastAPI, runner: Runner, known: Any) -> None:
    """Add the endpoints; `known` is the type that `jobs.job_in_path` returns."""
    reading = asyncio.Semaphore(READERS)

    @app.get("/v1/jobs/{identifier}/files/{name}", response_class=FileResponse)
    def file(job: known, name: Annotated[str, InPath(max_length=64)]) -> FileResponse:
        """Send a file of a job as soon as it is complete.

        `input.png` is the picture that it begins with, `mask.png` its mask, `reference-1.png` the first reference.
        `last.png` is the picture that a video ends with.
        """
        place = runner.place(job.id)
        whole = {path.name for pattern in (PICTURES, REFERENCES) for path in place.glob(pattern)} | {INPUT, MASK, LAST}
        whole |= {VIDEO} if job.state == DONE else set()
        if name not in whole or not (place / name).is_file():
            raise Refused(404, f"the job {job.id} has no file {name!r}. See the job's files.")
        return FileResponse(place / name)

    @app.get("/v1/jobs/{identifier}/video", response_class=StreamingResponse)
    async def video(job: known) -> Response:
        """Send a video while it is made: a fragmented MP4 that grows until the job is done."""
        if job.kind != "video":
            raise Refused(404, f"the job {job.id} draws pictures, not a video. See the job's files.")
        whole = runner.place(job.id) / VIDEO
        if job.state == DONE:
            if not whole.is_file():
                raise Refused(404, f"the video of the job {job.id} was removed. Send the request again.")
            return FileResponse(whole, media_type="video/mp4")
        if reading.locked():
            raise BusyError(
                f"{READERS} connections already read unfinished videos. Read this one when its job is done."
            )
        headers = {"Cache-Control": "no-store"}  # the finished file has other bytes
        return StreamingResponse(_growing(runner, job.id, reading), media_type="video/mp4", headers=headers)


async def _growing(runner: Runner, identifier: str, reading: asyncio.Semaphore) -> AsyncIterator[bytes]:
    """Yield the bytes of a video from the first, as they are written, until its job is over."""
    place = runner.place(identifier)
    growing, whole = place / f"{Path(VIDEO).stem}.part.mp4", place / VIDEO

    def going() -> bool:
        job = runner.store.get(identifier)
        return job is not None and job.state in (WAITING, RUNNING)

    async with reading:
        while not growing.exists() and await asyncio.to_thread(going):
            await asyncio.sleep(0.05)
        path = growing if growing.exists() else whole
        if not path.exists():
            return
        with path.open("rb") as file:
            while True:
                over = not await asyncio.to_thread(going)  # before the last read
                while chunk := await asyncio.to_thread(file.read, 1 << 16):
                    yield chunk
                if over or path == whole:
                    return
                await asyncio.sleep(0.05)
