"""A child process that reads one request as JSON and answers with lines of JSON. It frees its memory when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KILLED = -9
Answer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, and the lines that it wrote to stderr."""

    code: int
    log: list[str]


def ask(module: str, request: Any, answer: Answer, environment: Mapping[str, str] | None = None) -> Ended:
    """Run `module`, a full name such as `__name__`, with `request`; `answer` gets each of its lines.

    `environment` adds variables to those of this process. If `answer` raises, the child is killed.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # the child died at once; its exit status says so below
                child.stdin.write(json.dumps(request))
                child.stdin.close()
            for line in child.stdout:
                answer(json.loads(line))
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        errors.seek(0)
        return Ended(code, errors.read().decode(errors="replace").strip().splitlines())


def answering() -> tuple[Any, Answer]:
    """Return the request on stdin and a function that answers it. From here on, what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    return json.load(sys.stdin), answer
