"""Build an engine in a child process.

The builder takes three times the memory of the weights, and the child gives it back. The builder can also crash:
TensorRT-RTX 1.7.1 does for an attention whose query, keys and values are one graph input. A program that embeds Segue
must outlive that crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import errors
from ...errors import Cancelled, EngineError
from ..json_child import answering, ask
from ..process import peak_resident
from .build import Built, Report, Settings, build


def build_apart(
    graph: Path, settings: Settings, out: Path, report: Report | None = None, cancel: Callable[[], bool] | None = None
) -> Built:
    """Write the engine of `graph` to the new file `out` as `build` does, in a child process; raises as `build` does.

    A program frozen into one executable has no interpreter to start, so it builds in this process.
    """
    if getattr(sys, "frozen", False):
        with out.open("xb") as file:
            return build(graph, settings, file, report, cancel)
    result: dict[str, Any] = {}

    def answer(values: dict[str, Any]) -> None:
        if "phase" not in values:
            result.update(values)
            return
        if report is not None:
            report(values["phase"], values["done"], values["total"])
        if cancel is not None and cancel():
            raise Cancelled("building the engine was cancelled. Start again at any time.")

    ended = ask(__name__, [str(graph), dataclasses.asdict(settings), str(out)], answer)
    if "built" in result:
        return dataclasses.replace(Built(**result["built"]), log=tuple(ended.log))
    if "errno" in result:
        raise OSError(result["errno"], result["text"], str(out))
    if "kind" in result:
        kind = getattr(errors, result["kind"])
        raise kind(result["text"], log=ended.log) if kind is EngineError else kind(result["text"])
    last = ended.log[-1][:300] if ended.log else "it printed nothing"
    raise EngineError(
        f"the builder of {settings.target} died with exit status {ended.code} on the graph {graph}: {last}. "
        "Status -9 means that it was killed. Free memory: it needs about three times the weights. "
        "Otherwise use the target ort-cuda, and report it.",
        log=ended.log,
    )


def main() -> None:
    """Answer the request on stdin: one line for each step, then one with the result."""
    (graph, table, out), answer = answering()
    profiles = tuple({k: tuple(tuple(s) for s in v) for k, v in profile.items()} for profile in table.pop("profiles"))
    settings = Settings(profiles=profiles, capabilities=tuple(table.pop("capabilities")), **table)  # type: ignore[arg-type]

    def report(phase: str, done: int, total: int) -> None:
        answer({"phase": phase, "done": done, "total": total})

    try:
        with open(out, "xb") as file:
            made = build(Path(graph), settings, file, report, hear=_log)
    except errors.SegueError as error:
        answer({"kind": type(error).__name__, "text": str(error)})
    except OSError as error:
        answer({"errno": error.errno, "text": error.strerror})
    else:
        answer({"built": dataclasses.asdict(dataclasses.replace(made, log=(), peak=peak_resident()))})


def _log(line: str) -> None:
    """Write a line of the log to stderr, where the parent reads it even if this process crashes."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
