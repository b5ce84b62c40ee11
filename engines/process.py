"""What this process has taken of memory."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_resident() -> int:
    """Return the most bytes that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss counts the parent's memory at the fork
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
