"""What a process keeps of freed memory: with glibc, as much as it likes, unless it is told to give back.

With each large block that is freed glibc raises the size from which it maps memory apart, so that later ones lie in the
heap, between others, and the process does not shrink. Mapped apart each goes when it is freed. That is exact, and costs
fresh pages for each: calls on small pictures take two to three times as long.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

APART = 2**16  # bytes from which a block is mapped apart
LARGE = 2**22
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h

_given_back = False


def give_back() -> None:
    """Have this process give back what is freed, from here on; does nothing with another allocator than glibc's."""
    global _given_back
    library, _given_back = _glibc(), True
    if library is not None:
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            library.mallopt(threshold, APART)


def return_large() -> None:
    """Have this process give back large blocks as they are freed, unless `give_back` has asked for more.

    glibc otherwise puts ever larger ones into the heap of the thread that asks, the end of which it keeps.
    """
    library = _glibc()
    if library is not None and not _given_back:
        library.mallopt(_MMAP_THRESHOLD, LARGE)


def trim() -> None:
    """Give back what is free now."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None
