"""The work of a job: pictures or a video, written as files into the job's directory, with events to its feed."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..runtime.film import film
from ..runtime.media.provenance import Certificate, write_picture
from ..runtime.media.read_image import read_image
from ..runtime.pipeline import Model
from ..runtime.queue import CancelToken
from ..runtime.request import Request
from ..runtime.storage.journal import check_job
from ..runtime.videos.render import Event
from ..runtime.videos.request import AnimationRequest, PreparedAnimation
from ..runtime.videos.request import job as job_of
from .feed import Feed
from .store import Job

INPUT, VIDEO, JOURNAL = "input.png", "video.mp4", "journal"


def kind_of(model: Model) -> str:
    """Return what a model makes: "picture" or "video"."""
    return "picture" if model.bundle.manifest.video is None else "video"


def picture_request(request: dict[str, Any]) -> Request:
    """Return the request of a job of pictures."""
    return Request(**{name: value for name, value in request.items() if name != "previews"})


def draw_pictures(
    model: Model, job: Job, place: Path, feed: Feed, token: CancelToken, metadata: bool, certificate: Certificate | None
) -> list[str]:
    """Draw a job's pictures into the directory `place`, with events to `feed`; return the names of the files."""
    files: list[str] = []

    def on_step(done: int, total: int, latents: np.ndarray) -> None:
        feed.put("step", done=done, total=total)
        if job.request.get("previews") and model.budget is None:  # a plan does not count the memory of previews
            feed.put("preview", image=_data_url(model.decode(latents)[0]))

    for picture in model.pictures(picture_request(job.request), on_step=on_step, cancel=token):
        name = f"picture-{len(files) + 1}.png"
        write_picture(place / name, picture.image, picture.metadata if metadata else None, certificate)
        files.append(name)
        feed.put("picture", file=name)
    return files


def make_video(
    model: Model, job: Job, place: Path, feed: Feed, token: CancelToken, metadata: bool, certificate: Certificate | None
) -> list[str]:
    """Make a job's video in the directory `place`, with events to `feed`; return the name of the file.

    If the directory holds a journal of this job, the video continues at its end.
    """
    prepared = model.prepare(AnimationRequest(read_image(place / INPUT), **job.request))

    def on_event(event: Event) -> None:
        feed.put("call", stage=event.stage, window=event.window, done=event.done, total=event.total)

    (place / VIDEO).unlink(missing_ok=True)
    begun = (place / JOURNAL / "job.json").is_file()
    if begun and not _is_of(place / JOURNAL, prepared, model):  # the bundle was replaced since
        shutil.rmtree(place / JOURNAL)
        begun = False
    film(
        model, prepared, place / VIDEO, on_frames=lambda done, total: feed.put("frames", done=done, total=total),
        journal=place / JOURNAL, resume=begun, on_event=on_event, cancel=token, metadata=metadata,
        certificate=certificate,
    )  # fmt: skip
    shutil.rmtree(place / JOURNAL, ignore_errors=True)
    return [VIDEO]


def _is_of(journal: Path, prepared: PreparedAnimation, model: Model) -> bool:
    try:
        check_job(journal, job_of(prepared, model.bundle.digest))
    except UsageError:
        return False
    return True


def _data_url(image: np.ndarray) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
