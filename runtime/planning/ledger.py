"""What a model has taken of memory, by the kernel's count, beside what its plan allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...engines import devices
from ...engines.process import resident
from ...errors import BudgetError
from ..units import mebibytes
from . import memory

RESERVE = 2**20  # bytes that are mapped and not touched


class Ledger:
    """Resident bytes of this process beside those that it had when the ledger was opened.

    With `on_gpu` it is what all processes have taken of the GPU since.

    `planned` is the most that the present request is to take, None where nothing was planned; `loaded` what the process
    grew by as each component was loaded. Memory that other code of the process takes meanwhile is counted too.
    """

    def __init__(self, on_gpu: bool = False) -> None:
        self._on_gpu = on_gpu
        self._base = 0
        self._base = self._taken()
        self.planned: int | None = None
        self.loaded: dict[str, int] = {}
        self._reserve: bytes | None = None

    @property
    def used(self) -> int:
        """Return the bytes that are taken now."""
        return max(self._taken() - self._base, 0)

    @contextmanager
    def entry(self, component: str) -> Iterator[None]:
        """Enter what the process grows by in the block as that component's."""
        before = self._taken()
        yield
        self.loaded[component] = max(self._taken() - before, 0)

    def require(self, peak: int, host: int = 0) -> None:
        """Take `peak` bytes as the plan of the request that begins; raises BudgetError where not so many are left.

        `host` are bytes of the host's memory that a request on a GPU takes.
        """
        left = self._left()
        room = peak if left is None else self.used + left
        if peak > room:
            why = "the machine's free memory, or a limit of a cgroup, of the address space or of data"
            raise BudgetError(
                f"up to {mebibytes(peak)} MiB are needed, and {room // 2**20} MiB are left to this process: "
                f"{'what is free on the GPU' if self._on_gpu else why}. Give a budget of {room // 2**20}MiB, ask for a "
                "smaller size, or free memory."
            )
        if host > (room := resident() + memory.available()):
            raise BudgetError(
                f"up to {mebibytes(host)} MiB of the host's memory are needed beside the GPU's, and "
                f"{room // 2**20} MiB are left to this process. Free memory, or use another machine."
            )
        self.planned = peak
        self._reserve = bytes(RESERVE)

    def _taken(self) -> int:
        if not self._on_gpu:
            return resident()
        found = devices.memory()
        return 0 if found is None else found.used

    def _left(self) -> int | None:
        if not self._on_gpu:
            return memory.available()
        found = devices.memory()
        return None if found is None else found.free

    def ran_out(self, component: str) -> BudgetError:
        """Return the error of memory that ran out in the cost of a component."""
        self._reserve = None  # telling takes some, too
        held = ", ".join(f"{name} {mebibytes(count)}" for name, count in self.loaded.items()) or "nothing"
        planned = "not planned" if self.planned is None else f"{mebibytes(self.planned)} MiB were planned"
        return BudgetError(
            f"memory ran out in {component}: {mebibytes(self.used)} MiB were taken since the bundle was opened "
            f"({planned}), and loaded were, in MiB: {held}. Give a budget, or a smaller one (segue plan says what "
            "does), ask for a smaller size, or free memory."
        )
