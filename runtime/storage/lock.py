"""Locks between processes on Linux, macOS and Windows. The system releases a lock when its process ends."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import Cancelled, UsageError
from .files import writing

if TYPE_CHECKING:
    from filelock import FileLock

_PATIENCE = 0.2  # seconds between two looks at whether waiting was cancelled


def try_lock(path: Path) -> FileLock:
    """Return the lock of the file at `path`, held until its `release`, which any thread may call.

    Raises BlockingIOError if another process holds it, FileNotFoundError if its directory is absent, and another
    OSError if the file cannot be made or locked.
    """
    lock = _new(path)
    _acquire(lock, path, 0)
    return lock


def locked(path: Path, refusal: str) -> FileLock:
    """Return the lock of the file at `path`, held until its `release`; raises UsageError(refusal) if another has it."""
    try:
        return try_lock(path)
    except BlockingIOError:
        raise UsageError(refusal) from None


@contextlib.contextmanager
def holding(
    path: Path, waiting: Callable[[], None] = lambda: None, cancel: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Hold the lock of the file at `path` in the block. Call `waiting()` before waiting for another process.

    Raises Cancelled as soon as `cancel()` returns true while it waits, and OutputError if the file cannot be made.
    """
    lock = _new(path)
    with writing(path):
        try:
            _acquire(lock, path, 0)
        except BlockingIOError:
            waiting()
            _wait(lock, path, cancel)
    try:
        yield
    finally:
        lock.release()


def _new(path: Path) -> FileLock:
    from filelock import FileLock

    return FileLock(path, thread_local=False)


def _acquire(lock: FileLock, path: Path, seconds: float) -> None:
    from filelock import Timeout

    if not path.parent.is_dir():  # some versions of filelock would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(path)) from None
    except NotImplementedError:
        raise OSError(errno.ENOSYS, "the file system has no locks", str(path)) from None


def _wait(lock: FileLock, path: Path, cancel: Callable[[], bool] | None) -> None:
    while cancel is None or not cancel():
        with contextlib.suppress(BlockingIOError):
            _acquire(lock, path, _PATIENCE)
            return
    raise Cancelled("waiting for another process was cancelled. Start again when you like.")
