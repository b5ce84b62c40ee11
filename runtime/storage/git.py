"""Recognise what git makes of a file: changed line ends, or a pointer of git-lfs in its place."""

from __future__ import annotations

import hashlib
from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
FETCH = "Fetch the file itself, in its repository: git lfs install && git lfs pull"

_MOST = 2**26  # bytes of a text that is hashed again


def is_pointer(path: Path) -> bool:
    """Return whether git-lfs left a pointer of a few lines in place of the file; False if it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def changed_line_ends(path: Path, sha256: str) -> bool:
    """Return whether the file has `sha256` (hex) if its line ends CRLF become LF. False above 64 MiB."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST:
            return False
        data = path.read_bytes()
    except OSError:
        return False
    return b"\r\n" in data and hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest() == sha256


def explain(path: Path, sha256: str) -> tuple[str, str] | None:
    """Return what git did to a file that lacks its `sha256` (hex), and what to do; None if it is not git's doing.

    The first text continues a sentence whose subject is the file.
    """
    if is_pointer(path):
        return "is a pointer of git-lfs, not the file itself", FETCH
    if changed_line_ends(path, sha256):
        return (
            "differs by its line ends alone: they are CRLF and must be LF. git does that if core.autocrlf is on",
            "Clone it again: git clone -c core.autocrlf=false URL",
        )
    return None
