"""What the command line shows: progress bars on a terminal, JSON events for programs, nothing otherwise."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Output:
    """Writes results to standard output and progress to standard error.

    With `as_json` each event is one JSON object a line on standard output: {"event": NAME, ...}.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def event(self, name: str, **values: Any) -> None:
        """Write a JSON event; nothing without `as_json`."""
        if self.as_json:
            print(json.dumps({"event": name, **values}, ensure_ascii=False), flush=True)

    def line(self, text: str) -> None:
        """Write a line for people; nothing with `as_json`."""
        if not self.as_json:
            print(text, flush=True)

    @contextmanager
    def progress(self, label: str, unit: str = "steps") -> Iterator[Any]:
        """Yield `update(done, total, **figures)`: a bar on a terminal, events with `as_json`."""
        if self.as_json:
            yield lambda done, total, **figures: self.event("progress", task=label, done=done, total=total, **figures)
        elif sys.stderr.isatty():
            with _bar(label, unit) as update:
                yield update
        else:
            yield lambda done, total, **figures: None


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    started: dict[str, float] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, rate="", figures="")

        def update(done: float, total: float, **figures: float) -> None:
            now = time.monotonic()
            started.setdefault("time", now)
            started.setdefault("done", done)
            gone = now - started["time"]
            rate = f"{(done - started['done']) / gone:.3g} {unit}/s" if gone > 0.2 else ""
            shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
            bar.update(task, completed=done, total=total, rate=rate, figures=shown)

        yield update


def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print a table to standard output."""
    from rich.console import Console
    from rich.table import Table

    made = Table(*columns, title=title, title_justify="left")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    Console().print(made)
