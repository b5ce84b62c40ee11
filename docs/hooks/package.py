"""What the site takes from the clone: the package under its name, and the address of the repository.

mkdocstrings looks for a directory called segue, whatever the clone is called. The link to the repository leads to the
clone's origin, so a fork's site links to the fork.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(r"(?:https://(?:[^@/\s]*@)?|ssh://git@|git@)([\w.-]+)[:/]([\w./~-]+?)(?:\.git)?/?")


def on_config(config: Any) -> None:
    """Make build/package/segue, a link to the clone; name the repository if the clone has an origin on the web."""
    link = ROOT / "build/package/segue"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT)
    asked = subprocess.run(["git", "-C", ROOT, "remote", "get-url", "origin"], capture_output=True, text=True)
    if address := page_of(asked.stdout):
        config.repo_url, config.repo_name = address, address.removeprefix("https://").partition("/")[2]


def page_of(origin: str) -> str | None:
    """Return the web page of a git remote, without credentials; None for a path and for no remote."""
    found = ADDRESS.fullmatch(origin.strip())
    return found and f"https://{found[1]}/{found[2]}"
