"""Return freed memory to the system. By default glibc keeps it.

glibc maps large blocks apart from the heap, and unmaps each when it is freed. But each freed block raises glibc's limit
for "large". Later blocks then lie in the heap, and the process does not shrink. A fixed limit keeps blocks apart. It
costs fresh pages for each block: calls on small pictures take two to three times as long.
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
    """Return freed memory to the system from now on. Does nothing without glibc."""
    global _given_back
    library, _given_back = _glibc(), True
    if library is not None:
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            library.mallopt(threshold, APART)


def return_large() -> None:
    """Return large blocks to the system as they are freed, unless `give_back` was called.

    Otherwise glibc puts ever larger blocks into the heap of the calling thread, and keeps the end of that heap.
    """
    library = _glibc()
    if library is not None and not _given_back:
        library.mallopt(_MMAP_THRESHOLD, LARGE)


def trim() -> None:
    """Return the memory that is free now to the system."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None
