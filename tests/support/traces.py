"""Keep the traces of tiny models: a trace depends on configs and code and not on weights, so many exports share it."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from filelock import FileLock

from .shared import cached_folder

MAKE = ("opset", "build", "wrap", "inputs", "outputs", "traced")  # the fields of a Graph that a trace depends on

SEGUE = """#!{python}
import sys
from pathlib import Path

if __name__ == "__main__" and sys.argv[1:2] == ["export"]:
    sys.path.insert(0, {tests!r})
    from support.traces import keep_traces_in

    keep_traces_in(Path({folder!r}))
if __name__ == "__main__":
    from segue.cli import main

    main()
"""


def keep_traces(config: pytest.Config) -> None:
    """Let `segue.export.graphs.trace.trace` of this process look in pytest's cache first."""
    folder = cached_folder(config, "traces")
    if folder is not None:
        keep_traces_in(folder)


def keep_traces_in(folder: Path) -> None:
    """Let `segue.export.graphs.trace.trace` of this process look in `folder` first."""
    from segue.export.graphs import trace

    if not hasattr(trace.trace, "__wrapped__"):
        folder.mkdir(exist_ok=True)
        trace.trace = kept(trace.trace, folder)


def write_command(config: pytest.Config, directory: Path) -> None:
    """Write an executable `segue` into `directory`: the command itself, whose exports look in pytest's cache first."""
    folder = cached_folder(config, "traces")
    if folder is not None:
        command = directory / "segue"
        tests = str(Path(__file__).parents[1])
        command.write_text(SEGUE.format(python=sys.executable, tests=tests, folder=str(folder)))
        command.chmod(0o755)


def kept(make: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return `make`, a function like `trace`, with its results kept in `folder`."""
    import onnx_ir as ir

    from segue.export.graphs.trace import BUFFER

    @functools.wraps(make)
    def found(graph: Any, kind: str) -> ir.Model:
        described = json.dumps([kind, *described_by(graph)])
        if " at 0x" in described:  # something without a description of its own
            return make(graph, kind)
        path = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.onnx"
        marks = path.with_suffix(".json")
        with FileLock(path.with_suffix(".lock")):
            if not marks.exists():
                made = make(graph, kind)
                ir.save(made, path)
                marks.write_text(json.dumps([value.name for value in made.graph.inputs if value.meta.get(BUFFER)]))
            model = ir.load(path)
        model.graph.name = graph.component  # another component may have made it
        buffers = set(json.loads(marks.read_text()))
        for value in model.graph.inputs:
            value.meta[BUFFER] = value.name in buffers
        return model

    return found


def described_by(graph: Any) -> list[Any]:
    """Return JSON that is equal for graphs with equal traces, whatever their components are called."""
    return [describe(getattr(graph, name)) for name in MAKE]


def describe(value: Any) -> Any:
    """Return JSON that is equal for equal values; of a function its name and what it closes over."""
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, FunctionType):
        cells = [describe(cell.cell_contents) for cell in value.__closure__ or ()]
        return [
            value.__module__,
            value.__qualname__,
            value.__code__.co_firstlineno,
            cells,
            describe(value.__defaults__),
        ]
    if isinstance(value, Mapping):
        return {str(key): describe(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [describe(each) for each in value]
    return repr(value)
