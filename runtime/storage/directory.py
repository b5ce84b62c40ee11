"""Make a directory whole or not at all: fill a temporary directory, fsync, rename.

The temporary directory is a hidden sibling, `.NAME.partial-…`. It holds a lock file beside the content. A killed
process leaves it behind, and no reader looks at it. The next process that writes to the same place removes it if
nobody holds its lock.
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
from typing import TYPE_CHECKING

from ...errors import OutputError
from .lock import try_lock

if TYPE_CHECKING:
    from filelock import FileLock

# Errors of writing that may name no file
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_CONTENT, _LOCK = "content", "lock"  # in the temporary directory


class NewDirectory:
    """A context manager: fill `path`, then call `commit()`. Leaving the block without it removes everything.

    With `replace`, `commit` replaces an existing target. If the process dies at that moment, the old directory is in a
    hidden sibling `.NAME.old-…`, and the next NewDirectory for the same target puts it back.

    Entering raises OutputError if the target exists (without `replace`) or if its parent cannot be written to. Leaving
    raises OutputError for an OSError of a write below `path`. Any other OSError, such as one from reading a source,
    passes unchanged.
    """

    path: Path

    def __init__(self, target: Path, replace: bool = False) -> None:
        self._replace = replace
        self.target = Path(os.path.abspath(target))
        self._lock: FileLock | None = None

    def __enter__(self) -> NewDirectory:
        if self._replace:
            _put_back(self.target)
        else:
            refuse_existing(self.target)
        prefix = f".{self.target.name}.partial-"
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            remove_dead(self.target.parent, glob.escape(self.target.name))
            self.path, self._lock = _make(self.target.parent, prefix)
        except OSError as error:
            raise OutputError(
                f"{self.target.parent} cannot be written to ({error.strerror}).",
                "Choose another place for the output.",
            ) from None
        return self

    def commit(self) -> None:
        """Flush everything to disk and give the directory its name. Raises OutputError if the name is taken."""
        try:
            for folder, _, names in os.walk(self.path, topdown=False):
                for name in names:
                    _flush(os.path.join(folder, name))
                _flush(folder)
            if self._replace and self.target.is_dir():
                _exchange(self.path, self.target)
            else:
                refuse_existing(self.target)
                os.rename(self.path, self.target)
        except OSError as error:
            raise OutputError(
                f"{self.target} cannot be created ({error.strerror}).", "Choose another output."
            ) from None
        with contextlib.suppress(PermissionError):  # a directory that may be written but not read
            _flush(str(self.target.parent))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.path.parent, self._lock)
        if isinstance(error, OSError) and self._is_of_writing(error):
            raise OutputError(
                f"writing {self.target} failed ({error}).", "Free some space or choose another place."
            ) from error

    def _is_of_writing(self, error: OSError) -> bool:
        names = [n for n in (error.filename, error.filename2) if isinstance(n, (str, os.PathLike))]
        return error.errno in _FULL or any(Path(n).is_relative_to(self.path) for n in names)


def remove_dead(parent: Path, name: str) -> int:
    """Remove the temporary directories that killed processes left in `parent`; return how many.

    `name` is a pattern for the names of their targets.
    """
    return sum(_remove_if_dead(around) for around in parent.glob(f".{name}.partial-*"))


def _exchange(new: Path, target: Path) -> None:
    """Rename `new` to the existing directory `target`, and then remove the old one."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        os.rename(target, aside / target.name)
        os.rename(new, target)
    except BaseException:
        _put_back(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(target: Path) -> None:
    """Finish an interrupted exchange: afterwards `target` is the old directory or the new one."""
    for aside in target.parent.glob(f"{glob.escape(f'.{target.name}.old-')}*"):
        with contextlib.suppress(OSError):  # then it stays, for the next attempt
            if (aside / target.name).is_dir() and not os.path.lexists(target):
                os.rename(aside / target.name, target)
            shutil.rmtree(aside)


def refuse_existing(target: Path) -> None:
    """Raise OutputError if `target` exists, be it a file, a directory or a dangling link."""
    if os.path.lexists(target):
        raise OutputError(f"{target} exists already.", "Remove it or choose another output.")


def _make(parent: Path, prefix: str) -> tuple[Path, FileLock | None]:
    """Make a new temporary directory; return the directory for the content in it, and the lock.

    The lock is None if the file system has no locks. Another process may remove the directory before it is locked: then
    make another one.
    """
    while True:
        around = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = None
        try:
            lock = _lock(around)
            content = around / _CONTENT
            content.mkdir()
            content.chmod(0o755)
        except (BlockingIOError, FileNotFoundError):
            if lock is not None:
                lock.release()
            continue
        return content, lock


def _lock(around: Path) -> FileLock | None:
    """Return the lock of a temporary directory; None if the file system has no locks.

    Raises BlockingIOError if another process holds it, and FileNotFoundError if the directory is absent.
    """
    try:
        return try_lock(around / _LOCK)
    except (BlockingIOError, FileNotFoundError):
        raise
    except OSError:
        return None


def _remove(around: Path, lock: FileLock | None) -> None:
    shutil.rmtree(around, ignore_errors=True)
    if lock is not None:
        lock.release()
        if os.name == "nt":  # it keeps a file that is open
            shutil.rmtree(around, ignore_errors=True)


def _remove_if_dead(around: Path) -> bool:
    try:
        lock = _lock(around)
    except OSError:
        return False
    if lock is None:
        return False
    _remove(around, lock)
    return True


def _flush(path: str) -> None:
    if os.name == "nt" and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
