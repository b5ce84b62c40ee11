"""A cache of hashed files, so that large files are hashed once.

`verified.json` in the user's cache directory holds one entry for each file whose sha256 was right:
device-inode-size-mtime_ns-ctime_ns-sha256. It only saves time: without a readable cache every file is hashed, and a
file with another status is hashed again. A hard link, a chmod or a copy changes the status and not the bytes.
"""

from __future__ import annotations

import json
import os
import stat
import time

from ...errors import UsageError
from .files import write_whole
from .paths import cache_directory

LIMIT = 4096  # entries kept, newest last
_RACY_NS = 2 * 10**9  # on a coarse file system a younger file may change again without a new mtime


def key(status: os.stat_result, sha256: str) -> str:
    """Return the entry for a file of this status and hash."""
    changed = status.st_ctime_ns  # unlike the mtime, no program can set it
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{changed}-{sha256}"


def load() -> list[str]:
    """Return the remembered entries, oldest first; empty if there is no readable cache."""
    try:
        path = cache_directory() / "verified.json"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > 2**22:
            return []
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, UsageError, RecursionError):
        return []
    return [e for e in entries if isinstance(e, str)] if isinstance(entries, list) else []


def remember(statuses: list[tuple[os.stat_result, str]]) -> None:
    """Add entries to the cache, without files changed within the last two seconds. Failures are silent."""
    now = time.time_ns()
    new = [key(status, sha256) for status, sha256 in statuses if abs(now - status.st_mtime_ns) > _RACY_NS]
    if not new:
        return
    kept = [entry for entry in load() if entry not in set(new)]
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "verified.json", json.dumps((kept + new)[-LIMIT:], indent=0).encode())
    except (OSError, UsageError):
        return
