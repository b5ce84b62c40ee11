"""Does the jobs: one queue and one thread for each bundle, files in a directory for each job, events to its feed."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.base import Closing
from ..errors import BusyError, Cancelled, SegueError, UsageError
from ..runtime.amounts import bytes_of
from ..runtime.animation import AnimationRequest, Event
from ..runtime.animation import prepare as prepare_video
from ..runtime.files import writing
from ..runtime.image import write_png
from ..runtime.input_image import read_image
from ..runtime.pipeline import Model
from ..runtime.queue import CancelToken, ModelQueue
from ..runtime.request import Request, prepare
from ..runtime.video import mp4
from .feed import Feed
from .store import CANCELLED, DONE, FAILED, RUNNING, WAITING, Job, Store

INPUT, VIDEO, JOURNAL = "input.png", "video.mp4", "journal"
DEFECT = "Defect"  # the kind of an error that Segue did not raise on purpose
_ROOM = bytes_of("64MiB")  # left free on the disk, for the journal of jobs itself


@dataclass
class _Live:
    """What belongs to a job that waits or runs."""

    token: CancelToken
    feed: Feed
    future: Future | None = None


class Runner(Closing):
    """Accepts jobs, does them in order, and goes on with those that a stopped server left.

    `limit` jobs at most wait or run, over all bundles. The models are the runner's to close.
    """

    def __init__(self, models: Mapping[str, Model], folder: Path, limit: int) -> None:
        self.models, self.folder, self.limit = dict(models), folder, limit
        self.store = Store(folder / "jobs.sqlite")
        left = self.store.unfinished()
        self._queues = {name: ModelQueue(model, max(limit, len(left))) for name, model in models.items()}
        self._lock = threading.Lock()
        self._live: dict[str, _Live] = {}
        self._closing = False
        for job in left:
            if job.bundle in self.models:
                with self._lock:
                    self._enqueue(self.store.change(job.id, state=WAITING))
            else:
                text = f"this server has no bundle {job.bundle!r}. Start it with that one, then resume the job."
                self.store.change(job.id, state=FAILED, error={"kind": "UsageError", "message": text})

    def submit(self, kind: str, bundle: str | None, request: dict[str, Any], image: np.ndarray | None = None) -> Job:
        """Check a request and accept it; what comes back is on disk.

        Raises UsageError for what cannot be met and BusyError when `limit` jobs wait or run.
        """
        name = self.find(kind, bundle)
        self._check(name, kind, request, image)
        job = Job(uuid.uuid4().hex, kind, name, request, WAITING, time.time())
        with self._lock:
            self._check_room()
            place = self.place(job.id)
            with writing(place):
                place.mkdir(parents=True)
            if image is not None:
                write_png(place / INPUT, image, {})
            self.store.add(job)
            self._enqueue(job)
        return job

    def find(self, kind: str, bundle: str | None) -> str:
        """Return the name of a bundle that makes what is asked for; raises UsageError where there is none."""
        able = [name for name, model in self.models.items() if kind_of(model) == kind]
        if bundle is None and able:
            return able[0]
        if bundle not in able:
            raise UsageError(
                f"no bundle {'' if bundle is None else repr(bundle) + ' '}of this server makes a {kind}. "
                f"Choose among {', '.join(able) or 'none: start segue serve with a bundle that does'}."
            )
        return bundle

    def cancel(self, identifier: str) -> Job | None:
        """Stop a job that waits or runs before its next network call; return it as it is now, None if there is none."""
        with self._lock:
            live, job = self._live.get(identifier), self.store.get(identifier)
            if live is None or job is None:
                return job
            live.token.cancel()
            if job.state == RUNNING:
                return job
            assert live.future is not None
            live.future.cancel()  # leaves its place in the queue
            return self._end(identifier, CANCELLED)

    def resume(self, identifier: str) -> Job | None:
        """Put a cancelled or failed job into the queue again; a video goes on after its last finished segment.

        Return it as it is now, None if there is none. Raises UsageError for one that is done, and as `submit` does.
        """
        with self._lock:
            job = self.store.get(identifier)
            if job is None or not job.over:
                return job
            if job.state == DONE:
                raise UsageError(f"the job {identifier} is done. Ask for another one instead.")
            if job.bundle not in self.models:
                raise UsageError(f"this server has no bundle {job.bundle!r}. Start segue serve with it.")
            self._check_room()
            job = self.store.change(identifier, state=WAITING, error=None, started=None, finished=None)
            self._enqueue(job)
            return job

    def feed(self, identifier: str) -> Feed | None:
        """Return the events of a job that waits or runs, None of any other."""
        with self._lock:
            live = self._live.get(identifier)
            return None if live is None else live.feed

    def place(self, identifier: str) -> Path:
        """Return the directory of a job's files."""
        return self.folder / "jobs" / identifier

    def unfinished(self) -> int:
        """Return how many jobs wait or run."""
        with self._lock:
            return len(self._live)

    def close(self) -> None:
        """Stop what runs before its next network call; it and what waits are for the next start."""
        with self._lock:
            self._closing = True
        for queue in self._queues.values():
            queue.close()
        for model in self.models.values():
            model.close()
        self.store.close()

    def _check_room(self) -> None:
        if len(self._live) >= self.limit:
            raise BusyError(
                f"{len(self._live)} jobs are waiting or running, and this server takes {self.limit}. Try again when "
                "one has finished."
            )
        if shutil.disk_usage(self.folder).free < _ROOM:
            raise BusyError(f"the disk of {self.folder} is full. Make room, then try again.")

    def _check(self, name: str, kind: str, request: dict[str, Any], image: np.ndarray | None) -> None:
        content = self.models[name].bundle.manifest
        if kind == "picture":
            prepare(_picture_request(request), content)
        else:
            assert image is not None
            prepare_video(AnimationRequest(image, **request), content)

    def _enqueue(self, job: Job) -> None:
        live = self._live[job.id] = _Live(CancelToken(), Feed())
        live.future = self._queues[job.bundle].do(lambda model: self._run(model, job.id, live), live.token)

    def _run(self, model: Model, identifier: str, live: _Live) -> None:
        token, feed = live.token, live.feed
        with self._lock:
            if token() or self._closing:
                return  # it was cancelled while it waited, or waits for the next start
            job = self.store.change(identifier, state=RUNNING, started=time.time())
        feed.put("state", state=RUNNING)
        make = _pictures if job.kind == "picture" else _video
        try:
            files = make(model, job, self.place(identifier), feed, token)
        except Cancelled:
            with self._lock:
                if not self._closing:
                    self._end(identifier, CANCELLED)
                else:
                    self.store.change(identifier, state=WAITING, started=None)
        except SegueError as error:
            with self._lock:
                self._end(identifier, FAILED, error={"kind": type(error).__name__, "message": str(error)})
        except Exception as error:
            text = f"a defect of Segue, or of something below it: {type(error).__name__}: {error}. Report it."
            with self._lock:
                self._end(identifier, FAILED, error={"kind": DEFECT, "message": text})
        else:
            with self._lock:
                self._end(identifier, DONE, files=files)

    def _end(self, identifier: str, state: str, **values: Any) -> Job:
        job = self.store.change(identifier, state=state, finished=time.time(), **values)
        self._live.pop(identifier).feed.put(state, last=True, files=job.files, error=job.error)
        return job


def kind_of(model: Model) -> str:
    """Return what a model makes: "picture" or "video"."""
    return "picture" if model.bundle.manifest.video is None else "video"


def _picture_request(request: dict[str, Any]) -> Request:
    return Request(**{name: value for name, value in request.items() if name != "previews"})


def _pictures(model: Model, job: Job, place: Path, feed: Feed, token: CancelToken) -> list[str]:
    files: list[str] = []

    def on_step(done: int, total: int, latents: np.ndarray) -> None:
        feed.put("step", done=done, total=total)
        if job.request.get("previews"):
            feed.put("preview", image=_data_url(model.decode(latents)[0]))

    for picture in model.pictures(_picture_request(job.request), on_step=on_step, cancel=token):
        name = f"picture-{len(files) + 1}.png"
        write_png(place / name, picture.image, picture.metadata)
        files.append(name)
        feed.put("picture", file=name)
    return files


def _video(model: Model, job: Job, place: Path, feed: Feed, token: CancelToken) -> list[str]:
    request = AnimationRequest(read_image(place / INPUT), **job.request)
    ready, done = prepare_video(request, model.bundle.manifest), 0

    def on_event(event: Event) -> None:
        feed.put("call", stage=event.stage, window=event.window, done=event.done, total=event.total)

    (place / VIDEO).unlink(missing_ok=True)
    begun = (place / JOURNAL / "job.json").is_file()
    with mp4(place / VIDEO, ready.fps, ready.height, ready.width) as write:
        made = model.frames(request, journal=place / JOURNAL, resume=begun, on_event=on_event, cancel=token)
        for frames in made:
            write(frames)
            done += len(frames)
            feed.put("frames", done=done, total=ready.frames)
    shutil.rmtree(place / JOURNAL, ignore_errors=True)
    return [VIDEO]


def _data_url(image: np.ndarray) -> str:
    import base64
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
