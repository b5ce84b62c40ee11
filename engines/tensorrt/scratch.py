"""Scratch memory on the device, shared by engines that run one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..base import Closing


class Scratch(Closing):
    """One buffer of device memory, as large as the largest request so far.

    An engine must have ended its work on the device before another engine asks.
    """

    def __init__(self) -> None:
        self.size = 0
        self._address = 0
        self._cuda: Any = None

    def room(self, size: int, cuda: Any, did: Callable[[tuple[Any, ...]], Any]) -> int:
        """Return the address of at least `size` bytes. Another call may move it. Raises the errors of `did`."""
        size = max(size, 1)  # zero bytes need an address, too
        if size > self.size:
            self.close()
            self._address, self._cuda = int(did(cuda.cudaMalloc(size))), cuda
            self.size = size
        return self._address

    def close(self) -> None:
        """Free the buffer, whatever state CUDA is in. Closing twice is allowed."""
        if self.size:
            with contextlib.suppress(Exception):
                self._cuda.cudaFree(self._address)
        self.size = 0
