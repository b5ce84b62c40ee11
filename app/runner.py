"""Runs jobs: a queue and a thread for each bundle, a directory and a feed of events for each job."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines.base import Closing
from ..errors import BusyError, Cancelled, OutputError, SegueError, UsageError
from ..runtime.media.provenance import Certificate
from ..runtime.pipeline import Model
from ..runtime.queue import CancelToken, ModelQueue
from ..runtime.storage.files import writing
from ..runtime.storage.lock import locked
from ..runtime.units import bytes_of
from .job_work import (
    DEFECT,
    check_loras,
    check_request,
    defect_of,
    draw_pictures,
    kind_of,
    make_video,
    play_loras,
)  # fmt: skip
from .kept.feed import Feed
from .kept.inputs import NONE, Inputs
from .kept.store import CANCELLED, DONE, FAILED, RUNNING, WAITING, Job, Store
from .private import JOBS, LOCK, STORE, prepare_folder

ATTEMPTS = 3  # how often a job is started if the server ends during it
_ROOM = bytes_of("64MiB")  # left free on the disk, for the file of jobs
_log = logging.getLogger(__name__)


@dataclass
class _Live:
    """The state of a job that waits or runs."""

    token: CancelToken
    feed: Feed
    future: Future | None = None
    cancelling: bool = False


class Runner(Closing):
    """Accepts jobs, runs them in order, and continues the jobs of a server that was stopped.

    At most `limit` jobs of all bundles wait or run. The runner closes the models. `metadata`: write the request into
    each file. `certificate`: sign each file with it. `loras`: the directory of the LoRA files that jobs may name.
    """

    def __init__(
        self, models: Mapping[str, Model], folder: Path, limit: int, metadata: bool = True,
        certificate: Certificate | None = None, loras: Path | None = None,
    ) -> None:  # fmt: skip
        self.models, self.folder, self.limit = dict(models), folder, limit
        self.metadata, self.certificate, self.loras = metadata, certificate, loras
        prepare_folder(folder)
        with writing(folder):
            self._file = locked(
                folder / LOCK,
                f"another server keeps its jobs in {folder}. Stop it, or choose another directory with --data.",
            )
        self.store = Store(folder / STORE)
        # Interrupted jobs come last, because one of them may have ended the server
        left = sorted(self.store.unfinished(), key=lambda job: job.state == RUNNING)
        # One more, because a queue forgets a job a moment after its last event
        self._queues = {name: ModelQueue(model, max(limit, len(left)) + 1) for name, model in models.items()}
        self.decoding = threading.Semaphore()  # one picture at a time, because each may take hundreds of MB
        self._lock = threading.Lock()
        self._live: dict[str, _Live] = {}
        self._closing = False
        for job in left:
            self._take_up(job)

    def submit(
        self, kind: str, bundle: str | None, request: dict[str, Any], inputs: Inputs = NONE,
        feed: Feed | None = None, warnings: Sequence[str] = (),
    ) -> Job:  # fmt: skip
        """Check a request, write its job to disk and return the job. Its events go to `feed`, or to a new feed.

        `inputs` are kept in the job's directory. `warnings` are lines that the job gets besides those of the model.

        Raises UsageError if the bundle cannot meet the request, BudgetError if it does not fit into the budget,
        BusyError if `limit` jobs wait or run or the disk is full, and OutputError if the job cannot be written.
        """
        name = self.find(kind, bundle)
        check_loras(self.models[name], request, self.loras)
        told = [*warnings, *check_request(self.models[name], kind, request, inputs)]
        job = Job(uuid.uuid4().hex, kind, name, request | inputs.names(), WAITING, time.time(), warnings=told)
        place = self.place(job.id)
        try:
            inputs.write(place)
            with self._lock:
                self.check_room()
                self.store.add(job)
                try:
                    self._enqueue(job, feed)
                except SegueError:
                    self.store.remove(job.id)
                    raise
                _log.info("job %s: accepted, a %s of %s", job.id, kind, name)  # before it can run
                for line in told:
                    _log.info("job %s: %s", job.id, line)
        except SegueError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return job

    def find(self, kind: str, bundle: str | None) -> str:
        """Return the name of a bundle that makes this kind; raises UsageError if there is none."""
        able = [name for name, model in self.models.items() if kind_of(model) == kind]
        if bundle is None and able:
            return able[0]
        if bundle not in able:
            raise UsageError(
                f"no bundle {'' if bundle is None else repr(bundle) + ' '}of this server makes a {kind}. "
                + (f"Choose {' or '.join(able)}." if able else "Start segue serve with a bundle that does.")
            )
        return bundle

    def cancel(self, identifier: str) -> Job | None:
        """Stop a job before its next network call; return its present state, None if there is no such job.

        The order is on disk. It holds even if the server dies before the job has stopped.
        """
        with self._lock:
            live, job = self._live.get(identifier), self.store.get(identifier)
            if live is None or job is None:
                return job
            if job.state == RUNNING:
                job = self.store.change(identifier, cancelling=True)
                live.cancelling = True
                live.token.cancel()
                return job
            live.token.cancel()
            assert live.future is not None
            live.future.cancel()  # frees its place in the queue
            return self._end(identifier, CANCELLED)

    def resume(self, identifier: str) -> Job | None:
        """Queue a cancelled or failed job again; return its present state, None if there is no such job.

        A video continues after its last finished segment. Raises UsageError if the job is done or about to stop, and
        the errors of `submit`.
        """
        with self._lock:
            job = self.store.get(identifier)
            if job is not None and job.cancelling and not job.over:
                raise UsageError(f"the job {identifier} is about to stop. Resume it once its state is cancelled.")
            if job is None or not job.over:
                return job
            if job.state == DONE:
                raise UsageError(f"the job {identifier} is done. Submit a new job instead.")
            if job.bundle not in self.models:
                raise UsageError(f"this server has no bundle {job.bundle!r}. Start segue serve with it.")
            self.check_room()
            fresh = {"error": None, "started": None, "finished": None, "attempts": 0, "cancelling": False}
            self._enqueue(job)  # first: if the queue is full, the job stays as it was
            return self.store.change(identifier, state=WAITING, **fresh)

    def remove(self, identifier: str) -> None:
        """Remove a job and its files.

        Raises UsageError if the job waits or runs, and OutputError if a file cannot be removed.
        """
        with self._lock:
            if identifier in self._live:
                raise UsageError(f"the job {identifier} waits or runs. Cancel it first.")
            place = self.place(identifier)
            with writing(place):
                if place.exists():
                    shutil.rmtree(place)  # before the row: after a kill between the two, it can be removed again
            self.store.remove(identifier)
        _log.info("job %s: removed", identifier)

    def feed(self, identifier: str) -> Feed | None:
        """Return the feed of a job that waits or runs, None for any other job."""
        with self._lock:
            live = self._live.get(identifier)
            return None if live is None else live.feed

    def place(self, identifier: str) -> Path:
        """Return the directory of a job's files."""
        return self.folder / JOBS / identifier

    def unfinished(self) -> int:
        """Return how many jobs wait or run."""
        with self._lock:
            return len(self._live)

    def close(self) -> None:
        """Stop running jobs before their next network call. The next start continues unfinished jobs."""
        with self._lock:
            self._closing = True
        for queue in self._queues.values():
            queue.close()
        for model in self.models.values():
            model.close()
        self.store.close()
        self._file.release()

    def check_room(self) -> None:
        """Raise BusyError if no more jobs are accepted now."""
        if len(self._live) >= self.limit:
            raise BusyError(
                f"{len(self._live)} jobs are waiting or running; this server takes at most {self.limit}. Try again "
                "when one has finished."
            )
        if shutil.disk_usage(self.folder).free < _ROOM:
            raise BusyError(f"the disk of {self.folder} is full. Make room, then try again.")

    def _take_up(self, job: Job) -> None:
        """Queue a job that an earlier server left, or end it if it cannot run."""
        with self._lock:
            if job.bundle not in self.models:
                text = f"this server has no bundle {job.bundle!r}. Start segue serve with it, then resume the job."
                ended: dict[str, Any] = {"state": FAILED, "error": {"kind": "UsageError", "message": text}}
            elif job.cancelling:
                ended = {"state": CANCELLED}
            elif job.state == RUNNING and job.attempts >= ATTEMPTS:
                text = (
                    f"the server ended {job.attempts} times during this job. Ask for less, or resume it to try again."
                )
                ended = {"state": FAILED, "error": {"kind": DEFECT, "message": text}}
            else:
                self._enqueue(self.store.change(job.id, state=WAITING))
                return
            self.store.change(job.id, finished=time.time(), **ended)

    def _enqueue(self, job: Job, feed: Feed | None = None) -> None:
        live = _Live(CancelToken(), feed or Feed())
        live.future = self._queues[job.bundle].do(lambda model: self._run(model, job.id, live), live.token)
        self._live[job.id] = live

    def _run(self, model: Model, identifier: str, live: _Live) -> None:
        token, feed = live.token, live.feed
        with self._lock:
            if token() or self._closing:
                return  # cancelled while it waited, or left for the next start
            try:
                found = self.store.get(identifier)
                assert found is not None
                job = self.store.change(identifier, state=RUNNING, started=time.time(), attempts=found.attempts + 1)
            except OutputError as error:
                self._end(identifier, FAILED, error=_error_of(error))
                return
        feed.put("state", state=RUNNING)
        _log.info("job %s: running", identifier)
        make = draw_pictures if job.kind == "picture" else make_video
        state, ended = DONE, dict[str, Any]()
        try:
            place = self.place(identifier)
            play_loras(model, job.request, self.loras)
            ended = {"files": make(model, job, place, feed, token, self.metadata, self.certificate)}
        except Cancelled:
            state = CANCELLED
        except SegueError as error:
            state, ended = FAILED, {"error": _error_of(error)}
        except Exception as error:
            _log.info("job %s: a defect", identifier, exc_info=True)
            state, ended = FAILED, {"error": {"kind": DEFECT, "message": defect_of(error)}}
        with self._lock:
            if state == CANCELLED and self._closing and not live.cancelling:
                self.store.change(identifier, state=WAITING, started=None, attempts=job.attempts - 1)
            else:
                self._end(identifier, state, **ended)

    def _end(self, identifier: str, state: str, **values: Any) -> Job:
        """Write the end of a job and send the last event; free its place and readers even if writing fails."""
        feed = self._live.pop(identifier).feed
        files, error = values.get("files", []), values.get("error")
        _log.info("job %s: %s%s", identifier, state, "" if error is None else f", {error['message']}")
        try:
            return self.store.change(identifier, state=state, finished=time.time(), **values)
        except OutputError as fault:
            state, files, error = FAILED, [], _error_of(fault)
            raise
        finally:
            feed.put(state, last=True, files=files, error=error)


def _error_of(error: SegueError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)}
