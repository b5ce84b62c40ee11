"""What a process keeps of freed memory: with glibc, as much as it likes, unless it is told to give back.

ONNX Runtime frees its arrays one by one. With each large block that is freed glibc raises the size from which it maps
memory apart, so that later ones lie in the heap, between others, and the process does not shrink.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

APART = 65_536  # bytes from which a block is mapped apart, and given back when it is freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


@cache
def give_back() -> bool:
    """Have this process give back what is freed, from here on; return whether its allocator can be told so.

    That costs a system call and fresh pages for every larger array.
    """
    library = _glibc()
    return library is not None and all(library.mallopt(what, APART) == 1 for what in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))


def trim() -> None:
    """Give back what is free now."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None
