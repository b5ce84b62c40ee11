"""Run a check in a child process: its memory is free afterwards, and a check that is killed ends only the child."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...engines.json_child import KILLED, ask
from ...errors import ParityError

OFFLINE = {"POLYGRAPHY_AUTOINSTALL_DEPS": "0", "HF_HUB_OFFLINE": "1"}


def run_check(module: str, request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> bool:
    """Run `module` of this package with `request`; `answer` gets each line of the result.

    Returns False if the child was killed, as the kernel does when memory runs out. Raises ParityError if it failed.
    """
    ended = ask(f"{__package__}.{module}", request, answer, OFFLINE)
    if ended.code not in (0, KILLED):
        last = ended.log[-1] if ended.log else f"exit status {ended.code}"
        raise ParityError(f"The check of graphs itself failed: {last[:500]}. Report it.")
    return ended.code == 0
