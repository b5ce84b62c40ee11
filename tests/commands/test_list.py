"""What there is to draw with, as a user sees it: list, inspect, show; and the question before far too large a size."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import segue
from segue import cli
from segue.commands.console import Output
from segue.commands.options import confirmed, duration
from segue.errors import Cancelled, UsageError
from support.bundles import write_tiny_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments, columns: int = 80):
    environment = {"COLUMNS": str(columns)}
    return CliRunner().invoke(cli.cli, [str(a) for a in arguments], standalone_mode=False, env=environment)


def lines(*arguments, columns: int = 80) -> list[str]:
    result = run(*arguments, columns=columns)
    assert result.exception is None, result.exception
    return result.stdout.splitlines()


def test_list_fits_into_80_columns_and_never_breaks_a_name(exported: Path) -> None:
    mine, *shown = lines("list", exported)
    assert mine.startswith(f"{exported}: pictures, any text, 128x128, 4 steps, ")
    assert max(len(line.rstrip()) for line in shown[:-1]) <= 80
    for name in ("emoji", "emoji-teacher", "emoji-motion", "sd3-medium-without-t5", "swifti2v-wan22-w8a8"):
        assert any(line.split()[:1] == [name] for line in shown), name
    emoji = next(line for line in shown if line.split()[:1] == ["emoji"])
    assert {"pictures", "128x128", "4", "MB", "MiB", "Apache-2.0"} <= set(emoji.split())


def test_list_becomes_sentences_where_a_table_would_break() -> None:
    shown = lines("list", columns=40)
    assert any(
        re.fullmatch(r"emoji: pictures, \d+ names, 128x128, 4 steps, \d+ MB, \d+ MiB, Apache-2.0", s) for s in shown
    )
    assert any(line.startswith("sd3-medium: a plan of pictures, any text, 1024x1024, 28 steps") for line in shown)


def test_list_is_json_for_programs() -> None:
    found = [json.loads(line) for line in lines("list", "--json")]
    assert {event["event"] for event in found} == {"listed"}
    emoji = next(event for event in found if event["name"] == "emoji")
    assert (emoji["kind"], emoji["sizes"], emoji["steps"]) == ("bundle", [[128, 128]], 4)
    assert emoji["names"] > 1000
    assert emoji["peak"] > 0


def test_inspect_begins_with_what_a_user_asks_and_ends_with_parity() -> None:
    shown = lines("inspect", "emoji", columns=120)
    assert shown[0] == "emoji"
    assert [line.split()[0] for line in shown[1:8]] == [
        "draws", "prompts", "sizes", "steps", "memory", "disk", "licence",
    ]  # fmt: skip
    assert "128x128; others run from 64 to 256 by 16, with faults" in shown[3]
    text = "\n".join(shown)
    assert text.index("component") < text.index("parity")


def test_inspect_says_why_this_machine_cannot_run_a_bundle(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("segue.engines.devices.driver", lambda: SimpleNamespace(gpus=(), why="none"))
    path = write_tiny_bundle(tmp_path / "tiny", "float32")
    table = json.loads((path / "bundle.json").read_bytes())
    table["components"]["transformer"]["precision"] = "bf16"
    (path / "bundle.json").write_text(json.dumps(table))
    (memory,) = [line for line in lines("inspect", path, columns=120) if line.startswith("memory")]
    assert memory.startswith("memory   this machine cannot run it: transformer of the bundle")
    assert "is in bf16, which ONNX Runtime cannot run on a processor" in memory


def test_inspect_lists_the_names(exported: Path) -> None:
    shown = lines("inspect", "emoji", "--prompts")
    assert "😺  grinning cat" in shown
    assert shown[-1] == "styles, after a comma: 3d, noto, twemoji"
    assert not any("abacus" in line for line in shown)  # it was held out
    assert not any("skin tone" in line for line in shown[:-2])
    (event,) = [json.loads(line) for line in lines("inspect", "emoji", "--prompts", "--json")]
    assert {"name": "abacus", "emoji": "🧮", "seen": False}.items() <= next(
        name for name in event["names"] if name["name"] == "abacus"
    ).items()
    refused = run("inspect", exported, "--prompts").exception
    assert isinstance(refused, UsageError)
    assert "so it has no list of names" in str(refused)


def test_show_writes_a_size_as_every_command_takes_it(exported: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    assert run("render", exported, "x", "--size", "96x64", "--steps", "1", "-o", picture).exception is None
    assert any("size" in line and "96x64" in line for line in lines("show", picture))
    assert json.loads(lines("show", picture, "--json")[0])["metadata"]["size"] == [64, 96]


def test_a_wrong_name_of_a_plan_names_the_plans() -> None:
    told = str(run("plan", "nosuch").exception)
    assert "sd3-medium" in told
    assert "emoji-motion" in told


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    """Function that asks for a video of that size, on a terminal or without one; returns the questions."""

    def asking(size: int, *, yes: bool = False, terminal: bool = True, answer: bool = True, as_json: bool = False):
        questions: list[str] = []
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal))
        monkeypatch.setattr("click.confirm", lambda text, **_: (questions.append(text), answer)[1])
        with segue.open("emoji-motion", threads=1) as model:
            confirmed(Output(as_json), model, segue.AnimationRequest(np.zeros((8, 8, 3), np.uint8), size=size), yes)
        return questions

    return asking


def test_a_size_far_above_the_trained_ones_is_asked_about_with_its_time_and_memory(ask) -> None:
    assert ask(256) == []  # four times the pixels
    (question,) = ask(512)
    assert question.startswith("512x512 has 16 times the pixels of 128x128, the largest size that emoji-motion is made")
    assert re.search(r"It takes about [\d.]+ (s|min|h) and \d+ MiB of memory\. Go on\?$", question)
    assert ask(512, yes=True) == []


def test_a_no_stops_and_without_a_terminal_the_same_words_refuse(ask) -> None:
    with pytest.raises(Cancelled, match="Nothing was done"):
        ask(512, answer=False)
    for options in ({"terminal": False}, {"as_json": True}):
        with pytest.raises(UsageError, match=r"512x512 has 16 times .* MiB of memory\. Add --yes if you want it"):
            ask(512, **options)


def test_a_time_is_told_in_the_unit_that_people_use() -> None:
    assert [duration(s) for s in (0.449, 4.23, 42.3, 130, 5000, 9000, 70_000)] == [
        "0.45 s", "4.2 s", "42 s", "2.2 min", "83 min", "2.5 h", "19 h",
    ]  # fmt: skip
