"""The memory that this process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

from ...engines.process import limits

CGROUPS = Path("/sys/fs/cgroup")
VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def available(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the free bytes: the minimum over the machine, the cgroups and the limits of this process.

    `own` names this process's cgroup below `cgroups` (version 2) or below `cgroups/memory` (version 1). Parent cgroups
    count too. The page cache counts as free. The process limits are those of address space and private memory.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, "Memory Interface Files", and cgroup-v1/memory.html.
    """
    least = min([int(psutil.virtual_memory().available), *limits().values()])
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return least
    for _, controllers, name in (entry for entry in entries if len(entry) == 3):
        if controllers == "":
            least = min(least, _below(cgroups, name, VERSION_2, least))
        elif "memory" in controllers.split(","):
            least = min(least, _below(cgroups / "memory", name, VERSION_1, least))
    return least


def _below(root: Path, name: str, files: tuple[str, str, tuple[str, ...]], least: int) -> int:
    here = Path(name.lstrip("/"))
    return min(_left(root / group, files, least) for group in (here, *here.parents))


def _left(group: Path, files: tuple[str, str, tuple[str, ...]], otherwise: int) -> int:
    """Return a cgroup's limit minus its memory without the page cache; `otherwise` if it has no limit."""
    most, current, cache = files
    try:
        limit = (group / most).read_text().strip()
        held = int((group / current).read_text())
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        held -= sum(int(entries.get(name, 0)) for name in cache)  # the kernel frees the cache before it kills a process
        return otherwise if limit == "max" else max(int(limit) - held, 0)
    except (OSError, ValueError):  # the root of version 2 has no such files
        return otherwise
