"""A directory in which the package is called segue, whatever the clone is called: mkdocstrings looks for it there."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def on_config(config: Any) -> None:
    """Make build/package/segue, a link to the clone."""
    link = ROOT / "build/package/segue"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT)
