"""Where Segue keeps its files in the user's home."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ...errors import UsageError


def cache_directory() -> Path:
    """Return Segue's directory in the user's cache (XDG_CACHE_HOME, or the platform's default); it may not exist.

    Raises UsageError if neither that variable nor a home directory is known.
    """
    return _directory("XDG_CACHE_HOME", "cache", Path("Library/Caches"), Path(".cache"))


def data_directory() -> Path:
    """Return Segue's directory for data that nothing can recreate (XDG_DATA_HOME, or the platform's default).

    It may not exist. Raises UsageError as `cache_directory` does.
    """
    return _directory("XDG_DATA_HOME", "data", Path("Library/Application Support"), Path(".local/share"))


def packages_directory() -> Path:
    """Return the directory of what `segue data` fetches: $SEGUE_DATA, else `data` in Segue's cache directory."""
    return Path(os.environ.get("SEGUE_DATA") or cache_directory() / "data")


def _directory(variable: str, windows: str, mac: Path, other: Path) -> Path:
    chosen = os.environ.get(variable, "")
    if os.path.isabs(chosen):
        return Path(chosen) / "segue"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home(variable) / "AppData" / "Local") / "segue" / windows
    return _home(variable) / (mac if sys.platform == "darwin" else other) / "segue"


def _home(variable: str) -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and the system does not know the user: usual in a container
        raise UsageError(
            "there is no home directory: HOME is not set, and this user has no entry in the system's list.",
            f"Set {variable} to a directory that you may write: export {variable}=/tmp/mine",
        ) from None
