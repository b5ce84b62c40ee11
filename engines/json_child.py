"""A helper process that is asked by one line of JSON and answers by many: its memory is gone when it has answered."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from ..errors import ParityError

KILLED = -9


def ask(module: str, request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> bool:
    """Run `module` of this package with `request`; `answer` gets each of its lines.

    Returns False where it was killed, as the kernel does where memory runs out. Raises ParityError where it failed.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0", "HF_HUB_OFFLINE": "1"},
            text=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status says so below
                child.stdin.write(json.dumps(request))
                child.stdin.close()
            for line in child.stdout:
                answer(json.loads(line))
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if code not in (0, KILLED):
            errors.seek(0)
            last = (errors.read().decode(errors="replace").strip().splitlines() or [f"exit status {code}"])[-1]
            raise ParityError(f"The check of graphs itself failed: {last[:500]}. Report it.")
    return code == 0


def answering() -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """Return the request on stdin and what answers it. What libraries print goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    return json.load(sys.stdin), tell
