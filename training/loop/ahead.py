"""What a step draws on the processor is made while the step before it still computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls `make(step)` in a thread, one step ahead of the caller; `make` depends on its argument alone."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1)
        self._made: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """Return `make(step)` and begin with that of the next step; what `make` raises is raised here."""
        self._made = {near: self._made.get(near) or self._thread.submit(self._make, near) for near in (step, step + 1)}
        return self._made[step].result()
