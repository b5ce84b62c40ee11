"""The memory that a model has taken, by the kernel's count, and the memory that its plan allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...engines import devices
from ...engines.process import peak_resident, resident
from ...errors import BudgetError
from ..units import mebibytes
from . import memory

RESERVE = 2**20  # bytes that are mapped but not touched


class Ledger:
    """Resident bytes that this process has gained since the ledger was opened.

    With `on_gpu` it counts the GPU memory that all processes have taken since. `planned` is the planned peak of the
    current request, None without a plan. `loaded` is the growth of the process during each component's load. Memory
    that other code of the process takes meanwhile counts too.
    """

    def __init__(self, on_gpu: bool = False) -> None:
        self._on_gpu = on_gpu
        self._base = self._most = 0
        self._base = self._taken()
        self.planned: int | None = None
        self.loaded: dict[str, int] = {}
        self._reserve: bytes | None = None

    @property
    def used(self) -> int:
        """Return the bytes taken now."""
        taken = max(self._taken() - self._base, 0)
        self._most = max(self._most, taken)
        return taken

    @property
    def peak(self) -> int:
        """Return the most bytes taken so far: on a processor by the kernel's count, on a GPU of all looks at `used`."""
        used = self.used
        return self._most if self._on_gpu else max(peak_resident() - self._base, used)

    @property
    def idle(self) -> int:
        """Return the bytes that were taken when the ledger was opened."""
        return self._base

    @contextmanager
    def entry(self, component: str) -> Iterator[None]:
        """Record the growth of the process in the block as that component's."""
        before = self._taken()
        yield
        self.loaded[component] = max(self._taken() - before, 0)

    def require(self, peak: int, host: int = 0) -> None:
        """Set `peak` bytes as the plan of the next request; raises BudgetError if less memory is left.

        `host` is the bytes of host memory that a request on a GPU takes.
        """
        left = self._left()
        room = peak if left is None else self.used + left
        if peak > room:
            why = "the machine's free memory, or a limit of a cgroup, of the address space or of data"
            raise BudgetError(
                f"the request needs up to {mebibytes(peak)} MiB, but this process has only {room // 2**20} MiB left "
                f"({'the free memory of the GPU' if self._on_gpu else why}).",
                advice=f"Set a budget of {room // 2**20}MiB, choose a smaller size, or free memory.",
            )
        if host > (room := resident() + memory.available()):
            raise BudgetError(
                f"the request needs up to {mebibytes(host)} MiB of host memory in addition to the GPU's, but this "
                f"process has only {room // 2**20} MiB left.",
                advice="Free memory, or use another machine.",
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
        """Return the error for memory that ran out during the work of a component."""
        self._reserve = None  # the report needs memory, too
        held = ", ".join(f"{name} {mebibytes(count)}" for name, count in self.loaded.items()) or "nothing"
        planned = "not planned" if self.planned is None else f"planned: {mebibytes(self.planned)} MiB"
        return BudgetError(
            f"memory ran out in {component}: the model has taken {mebibytes(self.used)} MiB since it was opened "
            f"({planned}). Loaded, in MiB: {held}.",
            advice="Set a budget or a smaller one (see segue plan), choose a smaller size, or free memory.",
        )
