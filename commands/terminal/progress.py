"""A progress bar that fits into a terminal of any width: what is done, a bar, and the time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from ...runtime.planning.pictures import Plan

WIDEST, NARROWEST = 40, 8  # columns of the bar itself
SURE = 0.5  # seconds after which the time left can be estimated


class Bar:
    """One line: what is done, a bar, the time left. `more` follows, on a line of its own if there is no room.

    The work moves it from any thread, and the terminal draws it several times a second.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.amount = ""
        self.more = ""
        self.share: float | None = None  # of the work, 0 to 1
        self._skipped = 0.0  # the share that earlier runs made
        self._started = time.monotonic()
        self._left: tuple[float, float] | None = None  # seconds, and when they were estimated

    def move(self, share: float, skipped: float = 0.0) -> None:
        """Set the share of the work that is done, 0 to 1, of which earlier runs made `skipped`."""
        now = time.monotonic()
        if self.share is None:
            self._started = now  # loading before the first step says nothing about the steps
        self.share, self._skipped = min(max(share, 0.0), 1.0), skipped
        worked, passed = self.share - skipped, now - self._started
        if worked > 0 and passed >= SURE:
            self._left = passed * (1 - self.share) / worked, now

    def begin(self, share: float = 0.0) -> None:
        """Start the clock at `share`, which earlier runs made."""
        self.share, self._skipped, self._started = share, share, time.monotonic()

    @property
    def passed(self) -> float:
        """Return the seconds since the work began."""
        return time.monotonic() - self._started

    @property
    def left(self) -> str:
        """Return the time left as "0:00:08 left"; empty until it can be estimated."""
        if self._left is None:
            return ""
        seconds, then = self._left
        return f"{clock(max(seconds - (time.monotonic() - then), 0))} left"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the bar into the width of the terminal."""
        from rich.cells import cell_len, set_cell_size
        from rich.progress_bar import ProgressBar
        from rich.segment import Segment
        from rich.text import Text

        width, left, more = options.max_width, self.left, self.more
        amount = f" {self.amount}" if self.amount else ""
        label = self.label
        if (over := cell_len(label + amount) - width) > 0:  # the amount says more than the label
            label = set_cell_size(label, max(cell_len(label) - over - 1, 0)) + "…"
        head = label + amount
        tail = f" {left}" if left and cell_len(head) + len(left) < width else ""
        room = width - cell_len(head + tail) - 1
        beside = f"  {more}" if more and room - NARROWEST >= cell_len(more) + 2 else ""
        columns = min(room - cell_len(beside), WIDEST)
        yield Text(head, end="")
        if columns >= NARROWEST:
            shape = ProgressBar(total=1.0, completed=self.share or 0.0, width=columns, pulse=self.share is None)
            drawn = list(console.render(shape, options.update(width=columns)))
            yield Segment(" ")
            yield from drawn
            yield Segment(" " * (columns - sum(part.cell_length for part in drawn)))  # without colours it is shorter
        yield Text(tail + beside)
        if more and not beside:
            yield Text(more, overflow="fold")


class Work(Bar):
    """The bar of one whole command, in units such as frames, that moves with every network call.

    Each call counts with the time that the plan gives it, so that the bar and the time left follow the work.
    Without a plan only `reach` moves it.
    """

    def __init__(self, unit: str, total: int = 1, drawn: bool = True, verbose: bool = False) -> None:
        super().__init__(unit)
        self.drawn, self.verbose = drawn, verbose
        self._weights: dict[str, float] = {}
        self._planned = self._made = self._kept = 0.0
        self._lock = threading.Lock()
        self.count(0, total)

    def plan(self, plan: Plan | None) -> None:
        """Take the calls of a request from its plan, and start the clock."""
        phases = () if plan is None else [phase for phase in plan.phases if phase.calls]
        timed = all(phase.seconds > 0 for phase in phases)
        self._weights = {phase.component: phase.seconds / phase.calls if timed else 1.0 for phase in phases}
        self._planned = sum(self._weights[phase.component] * phase.calls for phase in phases)
        self.begin()

    def call(self, component: str, feeds: Any = None, outputs: Any = None) -> None:
        """Count one call of a component (an `OnCall` of the runtime)."""
        if not self._planned:
            return
        with self._lock:
            self._made += self._weights.get(component, 0.0)
        self.move((self._kept + self._made) / self._planned, self._kept / self._planned)

    def skip(self, component: str, calls: float) -> None:
        """Count calls that an earlier run made; call it after `plan`."""
        with self._lock:
            self._kept += self._weights.get(component, 0.0) * calls
        self.begin(self._kept / (self._planned or 1.0))

    def reach(self, done: float, total: float) -> None:
        """Move the bar to done / total if there is no plan; with a plan the calls move it."""
        if not self._planned:
            self.move(done / total, self._skipped)

    def count(self, done: int, total: int) -> None:
        """Set how many units are done, of how many."""
        self.amount = f"{done}/{total}" if total > 1 else ""

    def say(self, stage: str = "", **figures: float) -> None:
        """Show the stage, the time passed and figures of memory, such as `used_MiB`, if the command is verbose."""
        if self.verbose:
            numbers = [f"{name.removesuffix('_MiB')} {value:.0f} MiB" for name, value in figures.items()]
            self.more = ", ".join(part for part in (stage, *numbers, f"{clock(self.passed)} passed") if part)

    @property
    def done(self) -> float:
        """Return the share of the work that is done, 0 to 1."""
        return min(self.share or 0.0, 1.0)

    def __enter__(self) -> Work:
        self._shown = showing(self) if self.drawn else None
        if self._shown is not None:
            self._shown.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._shown is not None:
            self._shown.__exit__(*error)


@contextmanager
def showing(bar: Bar) -> Iterator[None]:
    """Draw a bar on standard error during the block, and remove it at the end."""
    from rich.console import Console
    from rich.live import Live

    # rich redirects printed text to its own stream, which is right only if standard output is the terminal too
    both = sys.stdout is not None and sys.stdout.isatty()
    live = Live(
        bar, console=Console(stderr=True), transient=True, refresh_per_second=10, redirect_stdout=both,
        vertical_overflow="crop",
    )  # fmt: skip
    with live:
        yield


def counted(bar: Bar, unit: str) -> Any:
    """Return `update(done, total, **figures)`, which moves a bar and shows amount, rate and figures."""
    scale, unit = (1e6, "MB") if unit == "bytes" else (1, unit)
    first: dict[str, float] = {}

    def update(done: float, total: float, **figures: float) -> None:
        if not first:
            first["done"] = done
            bar.begin(done / total if total else 0.0)
        bar.amount = f"{done / scale:.0f}/{total / scale:.0f}"
        bar.move(done / total if total else 1.0, first["done"] / total if total else 0.0)
        rate = f"{(done - first['done']) / scale / bar.passed:.3g} {unit}/s" if bar.passed > 0.2 else ""
        shown = (rate, *(f"{name} {value:.4g}" for name, value in figures.items()))
        bar.more = ", ".join(part for part in shown if part)

    return update


def clock(seconds: float) -> str:
    """Return seconds as "0:00:08", hours first."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
