"""Building an engine in a process of its own.

The builder takes three times the memory of the weights, which a child gives back; and it can crash: TensorRT-RTX 1.7.1
does for an attention whose query, keys and values are one graph input. A program that embeds Segue must outlive that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import errors
from ...errors import Cancelled, EngineError
from ..process import peak_resident
from .build import Built, Report, Settings, build


def build_apart(
    graph: Path, settings: Settings, out: Path, report: Report | None = None, cancel: Callable[[], bool] | None = None
) -> Built:
    """Write the engine of `graph` to the new file `out` as `build` does, in a child process; raises as it does.

    A program frozen into one executable has no interpreter to start: there it is built in this process.
    """
    if getattr(sys, "frozen", False):
        with out.open("xb") as file:
            return build(graph, settings, file, report, cancel)
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status says so below
                child.stdin.write(json.dumps([str(graph), dataclasses.asdict(settings), str(out)]))
                child.stdin.close()
            answer = _answer(child.stdout, report, cancel)
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if "built" in answer:
        return dataclasses.replace(Built(**answer["built"]), log=tuple(lines))
    if "errno" in answer:
        raise OSError(answer["errno"], answer["text"], str(out))
    if "kind" in answer:
        kind = getattr(errors, answer["kind"])
        raise kind(answer["text"], log=lines) if kind is EngineError else kind(answer["text"])
    last = lines[-1][:300] if lines else "it said nothing"
    raise EngineError(
        f"the builder of {settings.target} died with exit status {code} on the graph {graph}: {last}. If it was killed "
        "(-9), free memory: it needs about three times the weights; else use the target ort-cuda, and report it.",
        log=lines,
    )


def _answer(lines: Any, report: Report | None, cancel: Callable[[], bool] | None) -> dict[str, Any]:
    """Pass the child's steps on until its last line, and return that; empty if there was none."""
    for line in lines:
        said = json.loads(line)
        if "phase" not in said:
            return said
        if report is not None:
            report(said["phase"], said["done"], said["total"])
        if cancel is not None and cancel():
            raise Cancelled("building the engine was cancelled. Start again when you like.")
    return {}


def main() -> None:
    """Answer the request on stdin: a line of JSON for each step, then one with the result."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not fall among the answers

    def tell(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    graph, table, out = json.load(sys.stdin)
    profiles = tuple({k: tuple(tuple(s) for s in v) for k, v in profile.items()} for profile in table.pop("profiles"))
    settings = Settings(profiles=profiles, capabilities=tuple(table.pop("capabilities")), **table)  # type: ignore[arg-type]
    try:
        with open(out, "xb") as file:
            made = build(
                Path(graph),
                settings,
                file,
                lambda phase, done, total: tell(phase=phase, done=done, total=total),
                hear=_say,
            )
    except errors.SegueError as error:
        tell(kind=type(error).__name__, text=str(error))
    except OSError as error:
        tell(errno=error.errno, text=error.strerror)
    else:
        tell(built=dataclasses.asdict(dataclasses.replace(made, log=(), peak=peak_resident())))


def _say(line: str) -> None:
    """Put a line of the log where what libraries print goes, from where it is read even if this process crashes."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
