"""Share one model among many callers: requests wait in a bounded queue, from threads or asyncio.

with segue.open("emoji") as model, segue.ModelQueue(model, limit=16) as queue:
    future = queue.submit(segue.Request("a red heart"))  # from any thread
    image = future.result().images[0]

result = await queue.render(segue.Request("a red heart"))  # in asyncio
async for frames in queue.frames(segue.AnimationRequest(image)): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from ..engines.base import Closing
from ..errors import BusyError, Cancelled, UsageError
from .pipeline import Model, OnStep, Result
from .request import Request
from .videos.render import OnEvent
from .videos.request import AnimationRequest

T = TypeVar("T")


class CancelToken:
    """A switch for `cancel=`: any thread may call `cancel`, and the work stops before its next network call."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Cancel for good."""
        self._cancelled.set()

    def __call__(self) -> bool:
        """Return whether `cancel` was called."""
        return self._cancelled.is_set()


class ModelQueue(Closing):
    """Queues the requests of many callers of one model, first come, first served. The owner closes the model.

    At most `limit` requests are unfinished; one more raises BusyError at once, so that no caller waits without end.
    One thread does the work.
    """

    def __init__(self, model: Model, limit: int = 16) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise UsageError(f"limit must be a whole number of 1 or more, got {limit!r}.", "Choose such a number.")
        self.model, self.limit = model, limit
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future, Callable[[Model], Any]]] = deque()
        self._tokens: dict[Future, CancelToken] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="segue-queue", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many requests are unfinished."""
        with self._changed:
            return len(self._tokens)

    def submit(
        self, request: Request, *, on_step: OnStep | None = None, cancel: CancelToken | None = None
    ) -> Future[Result]:
        """Accept a request for pictures and return its future; `on_step` is called in the queue's thread.

        `future.cancel()` withdraws a waiting request. `cancel` also stops a running one; then `result()` raises
        Cancelled. Raises BusyError if `limit` is reached, UsageError after `close`. `result()` raises the errors of
        `Model.render`.
        """
        token = cancel or CancelToken()
        return self.do(lambda model: model.render(request, on_step=on_step, cancel=token), token)

    def do(self, work: Callable[[Model], T], cancel: CancelToken | None = None) -> Future[T]:
        """Accept any work with the model, `work(model)`, and return its future, as `submit` does.

        `work` itself must ask the token `cancel`; closing the queue cancels it.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise UsageError("the queue was closed and accepts no more requests.", "Make another queue.")
            if len(self._tokens) >= self.limit:
                raise BusyError(
                    f"{len(self._tokens)} requests are waiting or running, and the limit of the queue is {self.limit}.",
                    "Try again when one has finished, or make the queue with a larger limit.",
                )
            self._tokens[future] = cancel or CancelToken()
            self._waiting.append((future, work))
            self._changed.notify()
        # a withdrawn request frees its place at once, not at its turn
        future.add_done_callback(self._forget)
        return future

    async def render(self, request: Request, *, on_step: OnStep | None = None) -> Result:
        """Await a request's pictures. Cancelling the task stops the request before its next network call."""
        token = CancelToken()
        future = self.submit(request, on_step=on_step, cancel=token)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            token.cancel()
            raise

    async def frames(
        self, request: AnimationRequest, *, on_event: OnEvent | None = None, ahead: int = 1
    ) -> AsyncIterator[np.ndarray]:
        """Yield a video's frames, uint8 [n, height, width, 3], segment by segment.

        At most `ahead` segments are made in advance, so that memory stays bounded for a slow reader.
        Leaving the loop stops the request before its next network call.
        """
        token, loop = CancelToken(), asyncio.get_running_loop()
        made: asyncio.Queue[np.ndarray | None] = asyncio.Queue()
        room = threading.Semaphore(max(ahead, 1))

        def give(frames: np.ndarray | None) -> None:
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed
                loop.call_soon_threadsafe(made.put_nowait, frames)

        def work(model: Model) -> None:
            with contextlib.closing(model.frames(request, on_event=on_event, cancel=token)) as video:
                while True:
                    while not room.acquire(timeout=0.1):
                        if token():
                            raise Cancelled("the reader of the frames has stopped.", "Ask again for the whole video.")
                    frames = next(video, None)
                    if frames is None:
                        return
                    give(frames)

        future = self.do(work, token)
        future.add_done_callback(lambda _: give(None))
        try:
            while (frames := await made.get()) is not None:
                room.release()
                yield frames
            await asyncio.wrap_future(future)
        finally:
            token.cancel()

    def close(self) -> None:
        """Stop the running request before its next network call, cancel waiting ones, and end the thread."""
        with self._changed:
            self._closed = True
            waiting = [future for future, _ in self._waiting]
            self._waiting.clear()
            tokens = list(self._tokens.values())
            self._changed.notify()
        for token in tokens:
            token.cancel()
        for future in waiting:
            if future.set_running_or_notify_cancel():  # otherwise its owner has withdrawn it
                self._forget(future)
                future.set_exception(
                    Cancelled("the queue was closed before the request ran.", "Ask again with another queue.")
                )
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _forget(self, future: Future) -> None:
        with self._changed:
            self._tokens.pop(future, None)
            if future.cancelled():  # withdrawn: free its request
                self._waiting = deque(entry for entry in self._waiting if entry[0] is not future)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            found, failure = None, None
            try:
                found = work(self.model)
            except BaseException as error:  # the future passes it to the caller
                failure = error
            self._forget(future)  # before the result is set: the caller's next request must find a free place
            if failure is None:
                future.set_result(found)
            else:
                future.set_exception(failure)
            del future, work, found, failure  # the next wait may be long; free the results
