"""The output of the command line: results, progress bars, JSON events and failures."""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import BudgetError, Cancelled, MissingDependencyError, OutputError, SegueError
from .terminal.interrupt import stopping
from .terminal.progress import Bar, Work, counted, showing

if TYPE_CHECKING:
    from ..runtime.queue import CancelToken

_CLOSED = 141  # 128 + SIGPIPE, the exit code of other programs
_DEFECT = 70


JSON = click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line instead of text.")


class Output:
    """Writes results to standard output and progress to standard error.

    With `as_json` each event is one JSON object a line on standard output: {"event": NAME, ...}. `verbose` adds stages
    and memory to the bar of `work`.
    """

    def __init__(self, as_json: bool, verbose: bool = False) -> None:
        self.as_json, self.verbose = as_json, verbose

    def event(self, name: str, /, **values: Any) -> None:
        """Write a JSON event; nothing without `as_json`."""
        if self.as_json:
            _print(json.dumps({"event": name, **values}, ensure_ascii=not _writes_all()))

    def line(self, text: str) -> None:
        """Write a line for people; nothing with `as_json`."""
        if not self.as_json:
            _print(_plain(text))

    def note(self, text: str) -> None:
        """Write a line for people on standard error, so that standard output keeps only results."""
        if sys.stderr is not None:
            print(_plain(text), file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        """Write a warning: a line on standard error, and an event."""
        self.note(f"Warning: {text}")
        self.event("warning", text=text)

    def failure(self, text: str, kind: str, exit_code: int) -> None:
        """Write why the command stops: a line on standard error, and an event."""
        self.note(text if kind == Cancelled.__name__ else f"Error: {text}")
        self.event("error", kind=kind, exit_code=exit_code, text=text)

    @property
    def drawing(self) -> bool:
        """Whether bars are drawn: standard error is a terminal."""
        return not self.as_json and sys.stderr is not None and sys.stderr.isatty()

    def work(self, unit: str, total: int = 1) -> Work:
        """Return the bar of the whole command, to be entered when the work begins. It writes no events."""
        return Work(unit, total, self.drawing, self.verbose)

    @contextmanager
    def stoppable(self, unit: str = "step") -> Iterator[CancelToken]:
        """Yield a `cancel` for the runtime; Ctrl-C presses it and is answered at once, a second one ends at once."""

        def tell() -> None:
            self.note(f"Stopping after this {unit} … Press Ctrl-C again to stop at once.")
            self.event("stopping")

        def end() -> None:
            if self.drawing:
                sys.stderr.write("\x1b[?25h")  # the bar has hidden the cursor
            self.failure("Stopped.", Cancelled.__name__, Cancelled.exit_code)

        with stopping(tell, end) as stop:
            yield stop

    @contextmanager
    def progress(self, label: str, unit: str = "steps") -> Iterator[Any]:
        """Yield `update(done, total, **figures)`: a bar on a terminal, events with `as_json`."""
        if self.as_json:
            yield lambda done, total, **figures: self.event("progress", task=label, done=done, total=total, **figures)
        elif self.drawing:
            bar = Bar(label)
            with showing(bar):
                yield counted(bar, unit)
        else:
            yield lambda done, total, **figures: None

    @contextmanager
    def stages(self) -> Iterator[Any]:
        """Yield `update(label, unit, done, total, **figures)`; each new label begins a new `progress`."""
        current, inner = "", None
        with ExitStack() as stack:

            def update(label: str, unit: str, done: float, total: float, **figures: float) -> None:
                nonlocal current, inner
                if inner is None or label != current:
                    stack.close()
                    current, inner = label, stack.enter_context(self.progress(label, unit))
                inner(done, total, **figures)

            yield update


def guard(command: Callable[[], Any], show: Output) -> int:
    """Run `command`, show a failure without a traceback (unless SEGUE_DEBUG is set), return the exit code.

    Characters that standard output cannot encode are escaped from now on.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a redirected output on Windows is cp1252
    try:
        code = _run(command, show)
    except SystemExit as stop:  # raised by `_print`; click and rich raise one with code 1 for a closed pipe
        closed = stop.code == _CLOSED or isinstance(stop.__context__, BrokenPipeError)
        code = _CLOSED if closed else 1
    if code == _CLOSED:
        _silence()
    return code


def _silence() -> None:
    """Discard standard output, because buffered text would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: str) -> None:
    try:
        print(f"{text}\n", end="", flush=True)  # one write, because another thread may write an event
    except BrokenPipeError:
        raise SystemExit(_CLOSED) from None
    except OSError as error:
        raise _unwritable(error) from None


def _writes_all() -> bool:
    """Return whether standard output can encode every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf-")


def _unwritable(error: OSError) -> OutputError:
    _silence()
    return OutputError(f"standard output cannot be written: {error.strerror}. Redirect it to a disk with free space.")


def _plain(text: str) -> str:
    """Return `text` with control characters escaped, because a bundle's names and credits are untrusted."""
    return "".join(c if c in "\n\t" or not _steers(c) else repr(c)[1:-1] for c in text)


def _steers(character: str) -> bool:
    """Return whether this is a control, a lone surrogate, a line separator or a change of writing direction."""
    written = character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return written or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _run(command: Callable[[], Any], show: Output) -> int:
    try:
        code = command()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if "unexpected extra argument" in error.message:
            hint = ' Put a prompt of several words in quotes: "a red heart".'
            error = click.UsageError(error.message + hint, getattr(error, "ctx", None))
        if not show.as_json:
            error.show()  # with the usage line
            return error.exit_code
        text, kind, code = error.format_message(), "UsageError", error.exit_code
    except (click.Abort, KeyboardInterrupt, Cancelled) as error:
        text, kind, code = f"Stopped. {error}".strip(), Cancelled.__name__, Cancelled.exit_code
    except SegueError as error:
        text, kind, code = str(error), type(error).__name__, error.exit_code
    except MemoryError:
        text = "memory ran out. Give --budget if the command has it, choose a smaller size, or free memory."
        kind, code = BudgetError.__name__, BudgetError.exit_code
    except Exception as error:
        if os.environ.get("SEGUE_DEBUG"):
            raise
        kind, code = type(error).__name__, _DEFECT
        text = (
            f"a bug in Segue or in a library: {kind}: {error}. "
            "Run the command again with SEGUE_DEBUG=1 and report the traceback."
        )
    show.failure(text, kind, code)
    return code


def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], narrow: bool = False) -> None:
    """Print a table to standard output; with `narrow` without lines, and only the last column may break."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    heads = [Column(column, overflow="fold", no_wrap=narrow and column != columns[-1]) for column in columns]
    made = Table(*heads, title=Text(_plain(title)), title_justify="left")
    if narrow:
        made.box = None
    for row in rows:
        made.add_row(*(Text(_plain(str(cell))) for cell in row))
    try:
        Console().print(made)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from None


def need(module: str, extra: str) -> None:
    """Raise MissingDependencyError, with the command to run, if `module` of `extra` is not installed."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        torch = "pip install torch==2.13.0 && " if extra in ("export", "train", "dev") else ""
        raise MissingDependencyError(
            f"this command needs {module}, which is not installed. "
            f"Run in a clone of Segue: {torch}pip install '.[{extra}]'"
        )
