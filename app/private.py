"""The server's own files are for its user only: directories have mode 0700, files 0600. Windows ignores modes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import UsageError
from ..runtime.storage.files import writing

JOBS, STORE, LOCK = "jobs", "jobs.sqlite", "lock"
_BESIDE = ("-wal", "-shm", "-journal")  # SQLite's files beside its own


def prepare_folder(folder: Path, owned: bool = False) -> None:
    """Make the server's directory and what it needs, or take existing contents from other users.

    An existing directory keeps its mode, because other people may use it, unless it is `owned` by the server alone.
    What the server keeps inside becomes private in any case. Raises OutputError if the directory cannot be written,
    UsageError if another user owns something inside, and could therefore read it.
    """
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / JOBS).mkdir(mode=0o700, exist_ok=True)
        for name in (STORE, LOCK):
            (folder / name).touch(mode=0o600)
    for name in (JOBS, STORE, LOCK, *(STORE + end for end in _BESIDE)):
        _close(folder / name)
    if owned:
        _close(folder)


def _close(path: Path) -> None:
    """Give a file or directory, if it exists, to its user only."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    user = os.getuid() if hasattr(os, "getuid") else None
    if user not in (None, 0, found.st_uid):
        raise UsageError(
            f"{path} belongs to another user, who could read what the server keeps. Choose another directory with "
            "--data."
        )
    with contextlib.suppress(OSError):  # some file systems have no modes
        path.chmod(0o700 if path.is_dir() else 0o600)
