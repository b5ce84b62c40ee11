"""Where Segue keeps its files in the user's home."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """Return Segue's directory in the user's cache (XDG_CACHE_HOME, or the platform's own place); it may not exist."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(chosen):
        return Path(chosen) / "segue"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "segue" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "segue"
    return Path.home() / ".cache" / "segue"


def data_directory() -> Path:
    """Return Segue's directory for what cannot be made again (XDG_DATA_HOME, or the platform's); it may not exist."""
    chosen = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(chosen):
        return Path(chosen) / "segue"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "segue" / "data"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "segue"
    return Path.home() / ".local" / "share" / "segue"
