"""How much memory a process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
CACHE = ("inactive_file", "active_file")  # entries of memory.stat that the kernel gives up before it kills


def available(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes that are free: the machine's, or what a cgroup (v2) of this process leaves, if that is less.

    `own` names this process's cgroup below `cgroups`; each one above it counts too. The page cache counts as free.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, "Memory Interface Files".
    """
    least = int(psutil.virtual_memory().available)
    try:
        names = [line[3:] for line in own.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return least
    for name in names:
        here = Path(name.lstrip("/"))
        for group in (here, *here.parents):
            least = min(least, _left(cgroups / group, least))
    return least


def _left(group: Path, otherwise: int) -> int:
    """Return the limit of a cgroup less what it holds beside the page cache; `otherwise` where it has no limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        held = int((group / "memory.current").read_text())
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        held -= sum(int(entries.get(name, 0)) for name in CACHE)
        return otherwise if limit == "max" else max(int(limit) - held, 0)
    except (OSError, ValueError):  # the root has no such files, nor has a machine with cgroup v1
        return otherwise
