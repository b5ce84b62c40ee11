"""What this process has taken of memory, and the limits that it runs under."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil

_STATUS = Path("/proc/self/status")
# Words by which backends and the C++ library tell that memory ran out; they have no types of their own in Python
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
    """Return the bytes that the limits of this process leave, by their names ("RLIMIT_AS"); only those that are set."""
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
    """Have the kernel refuse this process more than `more` bytes of private memory beside what it has mapped now.

    It counts what is mapped, stacks of threads among it, not what is resident. It does nothing where a limit is lower
    already, and on other systems than Linux. Source: setrlimit(2), RLIMIT_DATA.
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
