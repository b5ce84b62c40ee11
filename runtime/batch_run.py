"""Has workers do jobs: processes of this machine, or actors of a Ray cluster. A worker that dies is replaced.

Every worker opens the bundle itself, and so verifies its files; it refuses one that is not the caller's. What a worker
makes comes back as bytes, so that nodes need no common disk.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from ..engines.ort import default_threads
from ..errors import BundleError, MissingDependencyError, SegueError, UsageError
from .batch import BatchJob, Ledger, Made, make
from .pipeline import Model, open_model

ATTEMPTS = 3  # of one job, when workers die under it
PATIENCE = 120  # seconds without any worker
OnResult = Callable[[dict[str, Any]], None]


class Workers(Protocol):
    """Something that does jobs."""

    def idle(self) -> bool:
        """Return whether a worker is free for a job now."""
        ...

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job."""
        ...

    def lost(self, error: BaseException) -> bool:
        """Return whether `error` means that a worker died, and have another one in its place."""
        ...

    def close(self) -> None:
        """End every worker."""
        ...


def run_batch(jobs: Iterable[BatchJob], ledger: Ledger, workers: Workers, on_result: OnResult) -> Counter[str]:
    """Have `workers` do the jobs that are not done; return how many are "done", "failed" and were there "before".

    Each result is in the ledger when `on_result` is told. A job under which a worker died is done again, elsewhere
    where there is another one, three times in all.
    """
    told: Counter[str] = Counter()
    waiting: deque[BatchJob] = deque()
    for job in jobs:
        if ledger.has(job):
            told["before"] += 1
        else:
            waiting.append(job)
    running: dict[Future[Made], BatchJob] = {}
    attempts: Counter[str] = Counter()
    since = time.monotonic()
    while waiting or running:
        while waiting and workers.idle():
            job = waiting.popleft()
            attempts[job.name] += 1
            running[workers.submit(job)] = job
        if running:
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise SegueError(
                f"no worker has come for {PATIENCE} s. See to the cluster, then run the same command again: what is "
                "done stays done."
            )
        ended, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        for future in ended:
            job = running.pop(future)
            error = future.exception()
            if error is None:
                row = ledger.done(job, future.result(), attempts[job.name])
            elif workers.lost(error) and attempts[job.name] < ATTEMPTS:
                waiting.append(job)
                continue
            elif isinstance(error, BundleError | MissingDependencyError):
                raise error  # it is every job's
            else:
                row = ledger.failed(job, error, attempts[job.name])
            told[row["state"]] += 1
            on_result(row)
    return told


class LocalWorkers:
    """Processes of this machine, each with the bundle open and its share of the cores."""

    def __init__(self, bundle: str, digest: str, count: int, threads: int | None = None) -> None:
        if count < 1:
            raise UsageError(f"{count} workers do nothing. Ask for 1 or more.")
        self._count = count
        self._arguments = (bundle, digest, threads or max(1, default_threads() // count))
        self._running: set[Future[Made]] = set()
        self._pool = self._started()

    def idle(self) -> bool:
        """Return whether fewer jobs run than there are processes."""
        return sum(not future.done() for future in self._running) < self._count

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job in a process that is free."""
        future = self._pool.submit(_work, job)
        self._running = {one for one in self._running if not one.done()} | {future}
        return future

    def lost(self, error: BaseException) -> bool:
        """Return whether the pool broke, which one dead process does to all; start a new one then."""
        if not isinstance(error, BrokenExecutor):
            return False
        if self._broken():
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._started()
        return True

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        import multiprocessing

        context = multiprocessing.get_context("spawn")  # threads of ONNX Runtime do not survive a fork
        return ProcessPoolExecutor(self._count, context, _begin, self._arguments)

    def _broken(self) -> bool:
        try:
            self._pool.submit(os.getpid).cancel()
        except BrokenExecutor:
            return True
        return False


_arguments: tuple[str, str, int] | None = None  # of this process, where it is one of LocalWorkers
_model: Model | None = None


def _begin(*arguments: Any) -> None:
    global _arguments
    _arguments = arguments  # type: ignore[assignment]


def _work(job: BatchJob) -> Made:
    global _model
    if _model is None:  # opened by the first job, so that what is wrong with the bundle comes back as it is
        assert _arguments is not None
        _model = opened(*_arguments)
    return make(_model, job)


def opened(bundle: str, digest: str, threads: int | None) -> Model:
    """Return the bundle opened by a worker; raises BundleError where it is not the one with that digest."""
    model = open_model(bundle, threads)
    if model.bundle.digest != digest:
        model.close()
        raise BundleError(
            f"{bundle} is another bundle here ({model.bundle.digest[:12]}) than where the jobs come from "
            f"({digest[:12]}). Copy the same one to every node."
        )
    return model


class RayWorkers:
    """Actors of a Ray cluster: one for each GPU of it, or for each `cores` processor cores where there is none."""

    def __init__(self, address: str, bundle: str, digest: str, cores: int = 1) -> None:
        try:
            import ray
        except ImportError:
            raise MissingDependencyError(
                "--ray needs ray, which is not installed. Run, in a clone of Segue: pip install '.[ray]'"
            ) from None
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise UsageError(f"no Ray cluster at {address!r}: {error}. Start one with: ray start --head") from None
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = gpus or max(1, int(resources.get("CPU", 1)) // cores)
        options = {"num_gpus": 1} if gpus else {"num_cpus": cores}
        self._actor: Any = ray.remote(**options)(_Actor)  # type: ignore[call-overload]
        self._place = (str(Path(bundle).resolve()) if Path(bundle).exists() else bundle, digest, cores)
        self._free: deque[Any] = deque()
        self._fault: BaseException | None = None
        for _ in range(count):
            self._start()

    def idle(self) -> bool:
        """Return whether an actor that has opened the bundle has nothing to do; raise what kept one from opening it."""
        if self._fault is not None:
            raise self._fault
        return bool(self._free)

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job with an actor that is free."""
        actor = self._free.popleft()
        future: Future[Made] = actor.make.remote(job).future()

        def over(ended: Future) -> None:
            if isinstance(ended.exception(), self._ray.exceptions.RayActorError):
                self._start()
            else:
                self._free.append(actor)

        future.add_done_callback(over)
        return _freed_first(future)

    def lost(self, error: BaseException) -> bool:
        """Return whether an actor or its node died; another one has its place already."""
        return isinstance(error, self._ray.exceptions.RayActorError)

    def _start(self) -> None:
        """Have an actor come where the cluster has room for one; it is given jobs when it is there."""
        actor = self._actor.remote(*self._place)

        def there(ended: Future) -> None:
            error = ended.exception()
            if error is None:
                self._free.append(actor)
            elif self.lost(error):
                self._start()
            else:
                self._fault = getattr(error, "cause", error)

        actor.ready.remote().future().add_done_callback(there)

    def close(self) -> None:
        """Leave the cluster, which ends this program's actors."""
        self._ray.shutdown()


class _Actor:
    def __init__(self, bundle: str, digest: str, cores: int) -> None:
        self.arguments = (bundle, digest, cores)

    def ready(self) -> None:
        """Open the bundle; here and not before, so that what is wrong with it comes back as it is."""
        self.model = opened(*self.arguments)

    def make(self, job: BatchJob) -> Made:
        return make(self.model, job)


def _freed_first(future: Future[Made]) -> Future[Made]:
    """Return a future that ends after what hangs on `future` is done, with what Ray wraps taken out of its errors."""
    after: Future[Made] = Future()

    def over(ended: Future[Made]) -> None:
        error = ended.exception()
        if error is None:
            after.set_result(ended.result())
        else:
            cause = getattr(error, "cause", None)
            after.set_exception(cause if isinstance(cause, SegueError) else error)

    future.add_done_callback(over)
    return after
