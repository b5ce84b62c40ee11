"""Has workers do jobs: processes of this machine, or actors of a Ray cluster. A worker that dies is replaced.

Every worker opens the bundle itself, and so verifies its files; it refuses one that is not the caller's. What a worker
makes comes back as bytes, so that nodes need no common disk.
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
from ...errors import BudgetError, BundleError, MissingDependencyError, SegueError, UsageError
from ..pipeline import Model, open_model
from ..worker_process import one_worker
from .jobs import BatchJob, Ledger, Made, make, packed

ATTEMPTS = 3  # of one job, when workers die under it or fail for reasons of their own
PATIENCE = 120  # seconds without any worker
MOST_WORKERS = 61  # Windows waits for no more processes at once
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
    """Have `workers` do the jobs, none of which is done yet; return how many are "done" and "failed".

    Each result is in the ledger when `on_result` is told. A job under which a worker died is done again, elsewhere
    where there is another one, three times in all.
    """
    told: Counter[str] = Counter()
    waiting = deque(jobs)
    running: dict[Future[Made], BatchJob] = {}
    attempts: Counter[str] = Counter()
    since = time.monotonic()
    while waiting or running:
        while waiting and workers.idle():
            job = waiting.popleft()
            attempts[job.name] += 1
            try:
                running[workers.submit(packed(job))] = job
            except UsageError as refusal:
                told["failed"] += 1
                on_result(ledger.failed(job, refusal, attempts[job.name]))
        if running:
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise SegueError(
                f"no worker has come for {PATIENCE} s. See to the cluster, then run the same command again: what is "
                "done stays done."
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
                raise error  # it is every job's
            elif attempts[job.name] < ATTEMPTS and not isinstance(error, UsageError | BudgetError):
                waiting.append(job)  # another worker, or a later time, may have what this one had not
                continue
            else:
                row = ledger.failed(job, error, attempts[job.name])
            told[row["state"]] += 1
            on_result(row)
    return told


class LocalWorkers:
    """Processes of this machine, each with the bundle open and its share of the cores."""

    def __init__(self, bundle: str, digest: str, count: int, threads: int | None = None, target: str = DEFAULT) -> None:
        if not 1 <= count <= MOST_WORKERS:
            raise UsageError(f"{count} workers are none, or too many. Ask for 1 to {MOST_WORKERS}.")
        self._arguments = (bundle, digest, threads or max(1, default_threads() // count), target)
        # An executor each: a process that dies breaks its executor, and so its own job and no other
        self._slots = [_Slot(one_worker(_begin, self._arguments)) for _ in range(count)]

    def idle(self) -> bool:
        """Return whether a process has nothing to do."""
        return any(slot.idle for slot in self._slots)

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job in a process that is free; in a new one where that has died."""
        slot = next(slot for slot in self._slots if slot.idle)
        try:
            slot.future = slot.pool.submit(_work, job)
        except BrokenExecutor:
            slot.pool = one_worker(_begin, self._arguments)
            slot.future = slot.pool.submit(_work, job)
        return slot.future

    def lost(self, error: BaseException) -> bool:
        """Return whether the process died; the next job of its place begins another one."""
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


_arguments: tuple[Any, ...] = ()  # of this process, where it is one of LocalWorkers
_model: Model | None = None


def _begin(*arguments: Any) -> None:
    global _arguments
    _arguments = arguments


def _work(job: BatchJob) -> Made:
    global _model
    if _model is None:  # opened by the first job, so that what is wrong with the bundle comes back as it is
        _model = opened(*_arguments)
    return make(_model, job)


def opened(bundle: str, digest: str, threads: int | None, target: str) -> Model:
    """Return the bundle opened by a worker; raises BundleError where it is not the one with that digest."""
    model = open_model(bundle, threads, target=target)
    if model.bundle.digest != digest:
        model.close()
        raise BundleError(
            f"{bundle} is another bundle here ({model.bundle.digest[:12]}) than where the jobs come from "
            f"({digest[:12]}). Copy the same one to every node."
        )
    return model


class RayWorkers:
    """Actors of a Ray cluster: one for each GPU where `target` runs on one, else for each `cores` processor cores."""

    def __init__(self, address: str, bundle: str, digest: str, cores: int = 1, target: str = DEFAULT) -> None:
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
        resources, on_gpu = ray.cluster_resources(), find_target(target).device != "cpu"
        count = int(resources.get("GPU", 0)) if on_gpu else int(resources.get("CPU", 0)) // cores
        if not count:
            ray.shutdown()
            raise UsageError(
                f"the cluster at {address!r} has no room for {target}. Add nodes, or take another --target."
            )
        options = {"num_gpus": 1} if on_gpu else {"num_cpus": cores}
        self._actor: Any = ray.remote(**options)(_Actor)  # type: ignore[call-overload]
        self._place = (str(Path(bundle).resolve()) if Path(bundle).exists() else bundle, digest, cores, target)
        self._free: deque[Any] = deque()
        self._alive: set[Any] = set()  # actors that come, wait or work; callbacks change it in other threads
        self._had: dict[str, Any] = {}  # the actor that a job was with
        self._fault: BaseException | None = None
        self._starts_left = 4 * count
        for _ in range(count):
            self._start()

    def idle(self) -> bool:
        """Return whether an actor that has opened the bundle has nothing to do; raise what keeps all from it."""
        if self._fault is not None and not self._alive:
            raise self._fault
        return bool(self._free)

    def submit(self, job: BatchJob) -> Future[Made]:
        """Start a job with an actor that is free."""
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
        """Return whether an actor, its node or what it made was lost, which any error but the job's own tells."""
        errors = self._ray.exceptions
        return isinstance(error, errors.RayError) and not isinstance(error, errors.RayTaskError)

    def close(self) -> None:
        """Leave the cluster, which ends this program's actors."""
        self._ray.shutdown()

    def _start(self) -> None:
        """Have an actor come where the cluster has room for one; it is given jobs when it is there."""

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
        except Exception as error:  # in a callback nobody would hear of it
            self._fault = error
            self._alive.discard(actor)


class _Actor:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def ready(self) -> None:
        """Open the bundle; here and not before, so that what is wrong with it comes back as it is."""
        self.model = opened(*self.arguments)

    def make(self, job: BatchJob) -> Made:
        return make(self.model, job)


def _cause(error: BaseException) -> BaseException:
    """Return Segue's own error where that is what Ray has wrapped."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SegueError) else error
