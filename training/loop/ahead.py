"""Draw a step's random data on the processor while the step before it still computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls `make(step)` in a thread, one step ahead of the caller; `make` depends only on its argument."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1)
        self._made: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """Return `make(step)` and start `make(step + 1)`. Raises what `make` raises."""
        self._made = {near: self._made.get(near) or self._thread.submit(self._make, near) for near in (step, step + 1)}
        return self._made[step].result()
