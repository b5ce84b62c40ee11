"""What a terminal sees, and what it must not."""

import io
import sys
from types import SimpleNamespace

import pytest

from segue.commands import console
from segue.commands.terminal import progress
from segue.errors import BudgetError, SegueError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_far_how_fast_and_how_long_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with console.Output(as_json=False).progress("emoji-teacher") as update:
        update(1, 400, loss=2.5)
        clock.now = 1.0
        update(5, 400, loss=0.25)
    shown = screen.getvalue()
    for part in ("emoji-teacher", "5/400", "4 steps/s", "loss 0.25", "0:01:39 left"):
        assert part in shown, part


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Output(as_json=False).progress("emoji-teacher") as update:
        update(3, 400, loss=0.25)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_figures_of_a_stage_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Output(as_json=True).stages() as update:
        update("emoji-teacher", "steps", 3, 400, loss=0.25)
    assert '"loss": 0.25' in capsys.readouterr().out


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("x[/b] (sd3)", ("[red]what",), [("[v2] of a bundle",)])
    shown = capsys.readouterr().out
    assert "x[/b] (sd3)" in shown
    assert "[v2] of a bundle" in shown


def test_what_would_steer_a_terminal_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    show = console.Output(as_json=False)
    show.line("credit \x1b[31mred\x07\nnext\tline é")
    show.line("心\u3000\N{WOMAN}\u200d\N{ROCKET}.png \u202egnp")
    show.warning("\x1b]0;title\x07")
    console.guard(lambda: _fail("name \x9b2J"), show)
    console.table("\x1b[2J", ("a",), [("\x1b[1m",)])
    captured = capsys.readouterr()
    assert "credit \\x1b[31mred\\x07\nnext\tline é\n" in captured.out
    assert "心\u3000\N{WOMAN}\u200d\N{ROCKET}.png \\u202egnp\n" in captured.out
    assert not {"\x1b", "\x07", "\x9b"} & set(captured.out + captured.err)


def _fail(text: str) -> None:
    raise SegueError(f"{text}. Choose another.")


def test_memory_that_runs_out_anywhere_is_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise MemoryError

    assert console.guard(command, console.Output(as_json=False)) == BudgetError.exit_code
    assert capsys.readouterr().err.startswith("Error: memory ran out. Give --budget")
