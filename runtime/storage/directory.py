"""Make a directory whole or not at all: a temporary sibling, fsync, rename.

A killed process leaves a hidden sibling `.NAME.partial-…`, which no reader looks at; the next export to the same
place removes it. A lock on that directory tells a dead export's leavings from a live one's.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from ...errors import OutputError

# What a write raises without naming a file.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class NewDirectory:
    """A context manager: fill `path`, then `commit()`; leaving without it removes everything.

    With `replace` a target that exists gives way on `commit`, not before. Should the process die just then, the old one
    is in a hidden sibling `.NAME.old-…`, from where the next one puts it back.

    Raises OutputError on entering where the target exists (without `replace`) or its parent cannot be written to, and
    on leaving for an OSError of a write below `path`. Every other OSError, such as that of reading a source, passes as
    it is.
    """

    path: Path

    def __init__(self, target: Path, replace: bool = False) -> None:
        self._replace = replace
        self.target = Path(os.path.abspath(target))
        self._lock: int | None = None
        self._done = False

    def __enter__(self) -> NewDirectory:
        if self._replace:
            _put_back(self.target)
        else:
            _refuse_existing(self.target)
        prefix = f".{self.target.name}.partial-"
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            remove_dead(self.target.parent, glob.escape(self.target.name))
            self.path, self._lock = _make(self.target.parent, prefix)
        except OSError as error:
            raise OutputError(
                f"{self.target.parent} cannot be written to ({error.strerror}). Choose another place for the output."
            ) from None
        return self

    def commit(self) -> None:
        """Flush everything to disk and give the directory its name. Raises OutputError where the name is taken."""
        try:
            for folder, _, names in os.walk(self.path, topdown=False):
                for name in names:
                    _flush(os.path.join(folder, name))
                _flush(folder)
            if self._replace and self.target.is_dir():
                _exchange(self.path, self.target)
            else:
                _refuse_existing(self.target)
                os.rename(self.path, self.target)
        except OSError as error:
            raise OutputError(f"{self.target} cannot be created ({error.strerror}). Choose another output.") from None
        self._done = True
        with contextlib.suppress(PermissionError):  # a directory that may be written to and not be read
            _flush(str(self.target.parent))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._done:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        if isinstance(error, OSError) and self._is_of_writing(error):
            raise OutputError(
                f"Writing {self.target} failed ({error}). Free some space or choose another place."
            ) from error

    def _is_of_writing(self, error: OSError) -> bool:
        names = [n for n in (error.filename, error.filename2) if isinstance(n, (str, os.PathLike))]
        return error.errno in _FULL or any(Path(n).is_relative_to(self.path) for n in names)


def remove_dead(parent: Path, name: str) -> int:
    """Remove what killed processes left in `parent` of directories whose names match `name`; return how many."""
    return sum(_remove_if_dead(leaving) for leaving in parent.glob(f".{name}.partial-*"))


def _exchange(new: Path, target: Path) -> None:
    """Give `new` the name of the directory `target`, which is removed once `new` stands in its place."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        os.rename(target, aside / target.name)
        os.rename(new, target)
    except BaseException:
        _put_back(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(target: Path) -> None:
    """End an exchange that did not come to its end: `target` is the old directory again, or the new one."""
    for aside in target.parent.glob(f"{glob.escape(f'.{target.name}.old-')}*"):
        with contextlib.suppress(OSError):  # it stays then, where it can still be found
            if (aside / target.name).is_dir() and not os.path.lexists(target):
                os.rename(aside / target.name, target)
            shutil.rmtree(aside)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise OutputError(f"{target} exists already. Remove it or choose another output.")


def _make(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """Return a new directory and its lock, None where the file system has no locks.

    Until it is locked another process may take it for a dead one's and remove it, holding the lock meanwhile: then
    another is made.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = _lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue
        if path.exists():
            path.chmod(0o755)
            return path, lock
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock on `path` until it is closed; None where there are no locks.

    Raises BlockingIOError where another process holds it.
    """
    if os.name == "nt":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _remove_if_dead(path: Path) -> bool:
    try:
        lock = _lock(path)
    except OSError:
        return False
    if lock is None:
        return False
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
    return True


def _flush(path: str) -> None:
    if os.name == "nt" and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
