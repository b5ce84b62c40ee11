"""Run the jobs of a batch in workers: processes of this machine, or actors of a Ray cluster.

A worker that dies is replaced. Every worker opens the bundle itself, so it verifies the files, and it refuses a bundle
that differs from the caller's. A result comes back as bytes, so that nodes need no shared disk.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...engines.ort.engine import default_threads
from ...engines.targets import DEFAULT, find_target
from ...errors import BudgetError, BundleError, Cancelled, MissingDependencyError, SegueError, UsageError
from ..components import Cancel
from ..pipeline import Model, open_model
from ..worker_process import one_worker
from .jobs import BatchJob, Ledger, Made, make, packed

ATTEMPTS = 3  # of one job, if its workers die or fail
PATIENCE = 120  # seconds without any worker
MOST_WORKERS = 61  # Windows can wait for at most this many processes
OnResult = Callable[[dict[str, Any]], None]


class Workers(Protocol):
    """A pool that runs jobs."""

    def idle(self) -> bool:
        """Return whether a worker is free for a job now."""
        ...

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job."""
        ...

    def lost(self, error: BaseException) -> bool:
        """Return whether `error` means that a worker died; if so, replace it."""
        ...

    def close(self) -> None:
        """End every worker."""
        ...


def run_batch(
    jobs: Iterable[BatchJob], ledger: Ledger, workers: Workers, on_result: OnResult, stop: Cancel = lambda: False
) -> Counter[str]:
    """Run the jobs in `workers`; return how many are "done" and "failed". No job may be done already.

    `on_result` is called after the result is in the ledger. If a worker dies, its job runs again, in another worker if
    possible, at most three times in total. As soon as `stop()` returns true no job begins any more; those that run are
    finished, and Cancelled is raised if any is left.
    """
    counts: Counter[str] = Counter()
    waiting = deque(jobs)
    running: dict[Future[Made], BatchJob] = {}
    attempts: Counter[str] = Counter()
    since = time.monotonic()
    while running or (waiting and not stop()):
        while waiting and not stop() and workers.idle():
            job = waiting.popleft()
            attempts[job.name] += 1
            try:
                running[workers.submit(packed(job))] = job
            except UsageError as refusal:
                counts["failed"] += 1
                on_result(ledger.failed(job, refusal, attempts[job.name]))
        if running:
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise SegueError(
                f"no worker has started for {PATIENCE} s.",
                "Check the cluster, then run the same command again: finished jobs stay finished.",
            )
        else:
            time.sleep(0.1)
        ended, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        for future in ended:
            job = running.pop(future)
            error = future.exception()
            if error is None:
                row = ledger.done(job, future.result(), attempts[job.name])
            elif isinstance(error, BundleError | MissingDependencyError):
                raise error  # every job would fail
            elif attempts[job.name] < ATTEMPTS and not isinstance(error, UsageError | BudgetError):
                waiting.append(job)  # another worker, or a later attempt, may succeed
                continue
            else:
                row = ledger.failed(job, error, attempts[job.name])
            counts[row["state"]] += 1
            on_result(row)
    if waiting:
        raise Cancelled(f"{len(waiting)} jobs were not begun.", "Run the same batch again to continue.")
    return counts


class LocalWorkers:
    """Processes of this machine, each with the bundle open and its share of the cores."""

    def __init__(self, bundle: str, digest: str, count: int, threads: int | None = None, target: str = DEFAULT) -> None:
        if not 1 <= count <= MOST_WORKERS:
            raise UsageError(f"workers must be between 1 and {MOST_WORKERS}, got {count}.", "Choose another number.")
        self._arguments = (bundle, digest, threads or max(1, default_threads() // count), target)
        # One executor per process: a process that dies breaks only its own executor and job
        self._slots = [_Slot(one_worker(_begin, self._arguments)) for _ in range(count)]

    def idle(self) -> bool:
        """Return whether a process is free."""
        return any(slot.idle for slot in self._slots)

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job in a free process; in a new one if that process has died."""
        slot = next(slot for slot in self._slots if slot.idle)
        try:
            slot.future = slot.pool.submit(_work, job)
        except BrokenExecutor:
            slot.pool = one_worker(_begin, self._arguments)
            slot.future = slot.pool.submit(_work, job)
        return slot.future

    def lost(self, error: BaseException) -> bool:
        """Return whether the process died; the next job in its slot starts another one."""
        return isinstance(error, BrokenExecutor)

    def close(self) -> None:
        """End the processes."""
        for slot in self._slots:
            slot.pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Slot:
    pool: ProcessPoolExecutor
    future: Future[Made] | None = None

    @property
    def idle(self) -> bool:
        return self.future is None or self.future.done()


_arguments: tuple[Any, ...] = ()  # of this process, if it is one of LocalWorkers
_model: Model | None = None


def _begin(*arguments: Any) -> None:
    global _arguments
    _arguments = arguments


def _work(job: BatchJob) -> Made:
    global _model
    if _model is None:  # opened by the first job, so that errors of the bundle reach the caller
        _model = opened(*_arguments)
    return make(_model, job)


def opened(bundle: str, digest: str, threads: int | None, target: str) -> Model:
    """Return the model of a worker; raises BundleError if its bundle does not have that digest."""
    model = open_model(bundle, threads, target=target)
    if model.bundle.digest != digest:
        model.close()
        raise BundleError(
            f"{bundle} on this node is another bundle ({model.bundle.digest[:12]}) than the caller's ({digest[:12]}).",
            "Copy the same bundle to every node.",
        )
    return model


class RayWorkers:
    """Actors of a Ray cluster: one per GPU if `target` runs on GPUs, else one per `cores` processor cores."""

    def __init__(self, address: str, bundle: str, digest: str, cores: int = 1, target: str = DEFAULT) -> None:
        try:
            import ray
        except ImportError:
            raise MissingDependencyError(
                "--ray needs ray, which is not installed.", "Run, in a clone of Segue: pip install '.[ray]'"
            ) from None
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise UsageError(
                f"there is no Ray cluster at {address!r}: {error}.", "Start one with: ray start --head"
            ) from None
        resources, on_gpu = ray.cluster_resources(), find_target(target).device != "cpu"
        count = int(resources.get("GPU", 0)) if on_gpu else int(resources.get("CPU", 0)) // cores
        if not count:
            ray.shutdown()
            raise UsageError(
                f"the cluster at {address!r} has no room for {target}.", "Add nodes, or use another --target."
            )
        options = {"num_gpus": 1} if on_gpu else {"num_cpus": cores}
        self._actor: Any = ray.remote(**options)(_Actor)  # type: ignore[call-overload]
        self._place = (str(Path(bundle).resolve()) if Path(bundle).exists() else bundle, digest, cores, target)
        self._free: deque[Any] = deque()
        self._alive: set[Any] = set()  # actors that start, wait or work; callbacks change it in other threads
        self._had: dict[str, Any] = {}  # the last actor of a job
        self._fault: BaseException | None = None
        self._starts_left = 4 * count
        for _ in range(count):
            self._start()

    def idle(self) -> bool:
        """Return whether an actor has opened the bundle and is free; raise the error if no actor could open it."""
        if self._fault is not None and not self._alive:
            raise self._fault
        return bool(self._free)

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job in a free actor."""
        others = (one for one in self._free if one is not self._had.get(job.name))
        actor, after = next(others, self._free[0]), Future[Made]()
        self._free.remove(actor)
        self._had[job.name] = actor

        def over(ended: Future) -> None:
            error = ended.exception()
            if error is None:
                self._free.append(actor)
                after.set_result(ended.result())
            elif self.lost(error):
                self._start()
                self._alive.discard(actor)
                after.set_exception(error)
            else:
                self._free.append(actor)
                after.set_exception(_cause(error))

        actor.make.remote(job).future().add_done_callback(over)
        return after

    def lost(self, error: BaseException) -> bool:
        """Return whether an actor, its node or its result was lost: any error of Ray except the job's own."""
        errors = self._ray.exceptions
        return isinstance(error, errors.RayError) and not isinstance(error, errors.RayTaskError)

    def close(self) -> None:
        """Leave the cluster; this ends the program's actors."""
        self._ray.shutdown()

    def _start(self) -> None:
        """Start an actor; it gets jobs as soon as it has opened the bundle."""

        def there(ended: Future) -> None:
            error = ended.exception()
            if error is None:
                self._free.append(actor)
                return
            if self.lost(error) and self._starts_left > 0:
                self._start()
            else:
                self._fault = _cause(error)
            self._alive.discard(actor)

        self._starts_left -= 1
        actor: Any = None
        try:
            actor = self._actor.remote(*self._place)
            self._alive.add(actor)
            actor.ready.remote().future().add_done_callback(there)
        except Exception as error:  # an error in a callback would be lost
            self._fault = error
            self._alive.discard(actor)


class _Actor:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def ready(self) -> None:
        """Open the bundle; not in `__init__`, so that its errors reach the caller."""
        self.model = opened(*self.arguments)

    def make(self, job: BatchJob) -> Made:
        return make(self.model, job)


def _cause(error: BaseException) -> BaseException:
    """Return Segue's own error if Ray wrapped one, else `error`."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SegueError) else error
