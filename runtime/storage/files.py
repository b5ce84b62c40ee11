"""Writing a file whole or not at all, and finding out beforehand that it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import Cancelled, OutputError, UsageError

if TYPE_CHECKING:
    from filelock import FileLock

_PATIENCE = 0.2  # seconds between two looks at whether waiting was cancelled


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary sibling, fsync and rename: a reader never sees half of it.

    The new file has the permissions that the umask gives, as if it were opened in the ordinary way. Raises OSError.
    """
    if os.path.lexists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, "it is a directory or a device", str(path))
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """ComponentCost an OSError of what is written at or below `place` in the block into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{place} cannot be written: {error}. Make room or choose another place, then run the same command again."
        ) from error


def locked(path: Path, refusal: str) -> FileLock:
    """Return the lock of the file at `path`, held until its `release`; raises UsageError(refusal) if another has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(refusal) from None
    return lock


@contextlib.contextmanager
def holding(
    path: Path, waiting: Callable[[], None] = lambda: None, cancel: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Hold the lock of the file at `path` in the block; `waiting()` is called before another process is waited for.

    Raises Cancelled once `cancel()` returns true while it waits, OutputError where the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            _acquire(lock, cancel)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, cancel: Callable[[], bool] | None) -> None:
    from filelock import Timeout

    while cancel is None or not cancel():
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=_PATIENCE)
            return
    raise Cancelled("waiting for another process was cancelled. Start again when you like.")


def check_parent(path: Path) -> None:
    """Raise OutputError unless the directory that `path` is to come into is there."""
    if not os.path.isdir(path.parent):
        raise OutputError(f"the directory {path.parent} does not exist. Make it first: mkdir -p '{path.parent}'")


def check_writable(path: Path) -> None:
    """Raise OutputError unless a file can be made at `path` now; leaves nothing behind.

    Call it before long work. It makes and removes a file beside `path`, because permission bits alone tell nothing
    about read-only mounts, quotas and a superuser.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path} is a directory. Name a file, such as {path / 'picture.png'}.")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise OutputError(f"{path} is a device or a broken link, which would be replaced. Name an ordinary file.")
    check_parent(path)
    probe = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # finds out a name that is too long
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written: {reason}. Name a place where you may write.") from None


_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends without it
