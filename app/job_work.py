"""The work of a job: pictures or a video, written as files into the job's directory, with events to its feed."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SegueError, UsageError
from ..runtime.film import film
from ..runtime.lora.adapter import Adapters
from ..runtime.media.formats import encode_picture
from ..runtime.media.provenance import Certificate, write_picture
from ..runtime.pipeline import Model
from ..runtime.queue import CancelToken
from ..runtime.request import Request
from ..runtime.storage.journal import check_job
from ..runtime.videos.request import AnimationRequest, PreparedAnimation
from ..runtime.videos.request import job as job_of
from ..runtime.videos.stage_one import Event
from .kept.feed import Feed
from .kept.inputs import KEYS, Inputs, inputs_in, named
from .kept.store import Job

VIDEO, JOURNAL = "video.mp4", "journal"
PICTURES = "picture-*"  # the pictures of a job; the ending is the format
# Keys that the model does not get
SERVERS = ("loras", "previews", "partial_images", "output_format", "output_compression")
# Notices of a server with --budget for a request with partial images
COARSE = "with --budget partial images are previews, which are coarser than the picture."
UNSHOWN = (
    "this bundle has no linear map for previews, so with --budget there are no partial images. Leave them out, or "
    "export the bundle again."
)
DEFECT = "Defect"  # the kind of an error that Segue does not raise on purpose


def kind_of(model: Model) -> str:
    """Return what a model makes: "picture" or "video"."""
    return "picture" if model.bundle.manifest.video is None else "video"


def check_loras(model: Model, request: dict[str, Any], folder: Path | None) -> None:
    """Raise UsageError if the model cannot play the LoRA files that a request names."""
    if request.get("loras"):
        tried = Adapters(model.bundle)
        _use(tried, request, folder)


def play_loras(model: Model, request: dict[str, Any], folder: Path | None) -> None:
    """Let the model play the LoRA files that a job names, and no others; raises UsageError as `check_loras` does."""
    wanted = request.get("loras", ())
    if not wanted and not model.loras:
        return
    model.lora(None)
    for lora in wanted:
        model.lora(_place(lora["file"], folder), lora["factor"], lora["component"], add=True)


def _use(adapters: Adapters, request: dict[str, Any], folder: Path | None) -> None:
    for lora in request["loras"]:
        try:
            adapters.use(_place(lora["file"], folder), lora["factor"], lora["component"], add=True)
        except UsageError:
            raise
        except SegueError as error:
            raise UsageError(str(error)) from None


def _place(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise UsageError(f"this server plays no LoRA files, such as {name!r}. Start segue serve with --lora-dir.")
    known = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    if name not in known:
        raise UsageError(f"this server has no LoRA file {name!r}. Choose one of {', '.join(known[:20]) or 'none'}.")
    return folder / name


def picture_request(request: dict[str, Any], inputs: Inputs) -> Request:
    """Return the request of a job of pictures."""
    return Request(**_asked(request), image=inputs.image, mask=inputs.mask, references=inputs.references)


def video_request(request: dict[str, Any], inputs: Inputs) -> AnimationRequest:
    """Return the request of a job of a video."""
    return AnimationRequest(**_asked(request), image=inputs.image, last=inputs.last)


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model's request that are no pictures."""
    return {name: value for name, value in request.items() if name not in (*SERVERS, *KEYS)}


def check_request(model: Model, kind: str, request: dict[str, Any], inputs: Inputs) -> tuple[str, ...]:
    """Return the warnings of a request, one line each; raises the errors of `Runner.submit` that concern the model."""
    prepared = model.prepare(picture_request(request, inputs) if kind == "picture" else video_request(request, inputs))
    if model.budget is not None:
        model.plan(prepared)
    notices = (*model.notices(prepared), *model.cuts(prepared))
    if request.get("partial_images") and model.budget is not None:
        notices += (COARSE if model.shows_steps else UNSHOWN,)
    return notices


def draw_pictures(
    model: Model, job: Job, place: Path, feed: Feed, token: CancelToken, metadata: bool, certificate: Certificate | None
) -> list[str]:
    """Draw a job's pictures into the directory `place`, with events to `feed`; return the names of the files."""
    files: list[str] = []
    kind, quality = job.request.get("output_format", "png"), job.request.get("output_compression", 100)

    def on_step(done: int, total: int, latents: np.ndarray) -> None:
        feed.put("step", done=done, total=total)
        if job.request.get("previews") and (preview := model.preview()) is not None:
            data = encode_picture(preview[0], "webp", None, quality=90)
            feed.put("preview", image="data:image/webp;base64," + base64.b64encode(data).decode())
        steps = total // job.request.get("count", 1)
        shown = partial_steps(steps, job.request.get("partial_images", 0))
        if (step := (done - 1) % steps + 1) in shown and (partial := _unfinished(model)) is not None:
            data = encode_picture(partial[0], kind, None, quality)
            feed.put("partial", index=shown.index(step), image=base64.b64encode(data).decode())

    wanted = picture_request(job.request, inputs_in(place, job.request))
    for picture in model.pictures(wanted, on_step=on_step, cancel=token):
        name = f"picture-{len(files) + 1}.{kind}"
        told = picture.metadata if metadata else None
        write_picture(place / name, picture.image, told, certificate, quality, picture.metadata)
        files.append(name)
        feed.put("picture", file=name)
    return files


def _unfinished(model: Model) -> np.ndarray | None:
    """Return the picture that the step just done expects, in full size; None if a budget leaves no way to show it."""
    return model.decode(model.estimate()) if model.budget is None else model.preview(full_size=True)


def partial_steps(steps: int, count: int) -> list[int]:
    """Return the steps, from 1 to `steps` - 1, after which `count` unfinished pictures are shown, evenly spaced.

    There are fewer if a picture has too few steps.
    """
    count = min(count, steps - 1)
    return [round(i * steps / (count + 1)) for i in range(1, count + 1)]


def make_video(
    model: Model, job: Job, place: Path, feed: Feed, token: CancelToken, metadata: bool, certificate: Certificate | None
) -> list[str]:
    """Make a job's video in the directory `place`, with events to `feed`; return the name of the file.

    If the directory holds a journal of this job, the video continues at its end.
    """
    prepared = model.prepare(video_request(job.request, inputs_in(place, named(place, job.kind, job.request))))

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


def defect_of(error: Exception) -> str:
    """Return the message for an error that Segue does not raise on purpose."""
    return f"a bug in Segue or in a library: {type(error).__name__}: {error}. Report it."


def _is_of(journal: Path, prepared: PreparedAnimation, model: Model) -> bool:
    try:
        check_job(journal, job_of(prepared, model.bundle.digest, model.loras))
    except UsageError:
        return False
    return True
