"""Write a file whole or not at all, and check beforehand that it can be written."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ...errors import OutputError


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary sibling, fsync and rename: a reader never sees half of it.

    The new file has the permissions of any new file (the umask applies). Raises OSError.
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


def read_text(path: Path) -> str:
    """Return the text of a file that a person wrote, without its byte order mark. Line ends stay as they are.

    UTF-8, or UTF-16 if the mark says so, because PowerShell writes both. Raises OSError or UnicodeDecodeError.
    """
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an OSError in the block into an OutputError; `place` is the file or directory that the block writes."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{place} cannot be written: {error}.",
            "Make room or choose another place, then run the same command again.",
        ) from error


def check_parent(path: Path) -> None:
    """Raise OutputError unless the parent directory of `path` exists."""
    if not os.path.isdir(path.parent):
        raise OutputError(f"the directory {path.parent} does not exist.", f"Make it first: mkdir -p '{path.parent}'")


def check_writable(path: Path) -> None:
    """Raise OutputError unless a file can be made at `path` now; leave nothing behind.

    Call it before long work. It makes and removes a file beside `path`, because permission bits say nothing about
    read-only mounts, quotas and a superuser.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path} is a directory.", f"Name a file, such as {path / 'picture.png'}.")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise OutputError(
            f"{path} is a device or a broken link, and writing would replace it.", "Name an ordinary file."
        )
    check_parent(path)
    probe = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # fails if the name is too long
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written: {reason}.", "Name a place where you may write.") from None


_BINARY = getattr(os, "O_BINARY", 0)  # without it Windows changes line ends
