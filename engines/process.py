"""The memory that this process uses, and the limits that it runs under."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil

_STATUS = Path("/proc/self/status")
# Words of backends and of the C++ library for exhausted memory, which has no exception type of its own in Python
_RAN_OUT = (
    "bad_alloc", "bad allocation", "failed to allocate memory", "out of memory", "cannot allocate memory",
    "alloc_failed", "available memory of", "cannot map", "failed to map segment", "can't start new thread",
    "pthread_create failed",
)  # fmt: skip


def resident() -> int:
    """Return the bytes that this process holds."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """Return the most bytes that this process has held so far."""
    if _STATUS.is_file():  # Linux's ru_maxrss counts the parent's memory at the fork
        return _status("VmHWM")
    resource = _resource()
    if resource is None:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def limits() -> dict[str, int]:
    """Return the bytes that each limit of this process leaves, by name ("RLIMIT_AS"); unset limits are left out."""
    resource = _resource()
    if resource is None or not _STATUS.is_file():
        return {}
    left = {}
    for name, taken in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        most, _ = resource.getrlimit(getattr(resource, name))
        if most != resource.RLIM_INFINITY:
            left[name] = max(most - _status(taken), 0)
    return left


def limit_data(more: int) -> None:
    """Limit this process to `more` bytes of private memory beyond the memory that it has mapped now.

    The kernel counts mapped memory, thread stacks included, not resident memory. Does nothing if a lower limit is set,
    and on systems other than Linux. Source: setrlimit(2), RLIMIT_DATA.
    """
    resource = _resource()
    if resource is None or not _STATUS.is_file():
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _status("VmData") + more
    if soft == resource.RLIM_INFINITY or wanted < soft:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def ran_out(error: BaseException) -> bool:
    """Return whether an error of Python or of a backend says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _RAN_OUT)


def _resource() -> Any:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource


def _status(key: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
