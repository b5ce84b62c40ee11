"""Where Segue keeps what it can make or fetch again."""

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
