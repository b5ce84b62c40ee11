"""Make a directory whole or not at all: a temporary sibling, fsync, rename.

A killed process leaves a hidden sibling `.NAME.partial-…`, which no reader looks at; the next export to the same
place removes it. A lock on that directory tells a dead export's leavings from a live one's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from ..errors import OutputError


class NewDirectory:
    """A context manager: fill `path`, then `commit()`; leaving without it removes everything.

    Raises OutputError on entering where the target exists or its parent cannot be written to.
    """

    path: Path

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.abspath(target))
        self._lock: int | None = None
        self._done = False

    def __enter__(self) -> NewDirectory:
        _refuse_existing(self.target)
        prefix = f".{self.target.name}.partial-"
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            for leaving in self.target.parent.glob(prefix.replace("[", "[[]") + "*"):
                _remove_if_dead(leaving)
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=self.target.parent))
            self.path.chmod(0o755)
            self._lock = _lock(self.path)
        except OSError as error:
            raise OutputError(
                f"{self.target.parent} cannot be written to ({error.strerror}). Choose another place for the output."
            ) from None
        return self

    def commit(self) -> None:
        """Flush everything to disk and give the directory its name. Raises OutputError where the name is taken."""
        for folder, _, names in os.walk(self.path, topdown=False):
            for name in names:
                _flush(os.path.join(folder, name))
            _flush(folder)
        _refuse_existing(self.target)
        try:
            os.rename(self.path, self.target)
        except OSError as error:
            raise OutputError(f"{self.target} cannot be created ({error.strerror}). Choose another output.") from None
        self._done = True
        _flush(str(self.target.parent))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._done:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        if isinstance(error, OSError):
            raise OutputError(
                f"Writing {self.target} failed ({error}). Free some space or choose another place."
            ) from error


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise OutputError(f"{target} exists already. Remove it or choose another output.")


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock on `path` until it is closed; None where another process holds it."""
    if os.name == "nt":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_if_dead(path: Path) -> None:
    lock = _lock(path)
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _flush(path: str) -> None:
    if os.name == "nt" and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
