"""The commands that make models: what they need, what they refuse, what they write."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from segue import cli
from segue.errors import SegueError
from segue.training.cdm.data.pairs import Pairs
from segue.training.evaluation import evaluate, videos


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.cli, [str(a) for a in arguments])


def refused(done: Result, kind: str, *parts: str) -> None:
    """Assert that the command raised an error of Segue's, which `console.run` turns into a line and an exit code."""
    assert isinstance(done.exception, SegueError), done.output
    assert type(done.exception).__name__ == kind
    for part in parts:
        assert part in str(done.exception)


def test_pairs_are_drawn_as_the_teacher_is_and_carried_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\nblue\n\n")
    done = invoke("encode", tiny_checkpoint, prompts, "-o", tmp_path / "texts")
    assert done.exit_code == 0, done.output
    assert "2 prompts" in done.output
    command = ("pairs", tiny_checkpoint, tmp_path / "texts", "-o", tmp_path / "pairs", "--size", 64, "--count", 3)
    for _ in range(2):  # the second finds all there
        done = invoke(*command, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.output.splitlines()[-1]) == {
            "event": "pairs", "path": str(tmp_path / "pairs"), "count": 3,
        }  # fmt: skip
    assert len(Pairs(tmp_path / "pairs")) == 3
    settings = json.loads((tiny_checkpoint / "segue.json").read_text())
    made = json.loads((tmp_path / "pairs/pairs.json").read_text())
    assert (made["steps"], made["guidance"]) == (settings["steps"], settings["guidance"])
    assert made["size"] == [64, 64]


def test_a_family_that_is_unknown_is_named_with_those_that_are_not(tmp_path: Path) -> None:
    done = invoke("encode", tmp_path, tmp_path, "-o", tmp_path / "out", "--family", "flux")
    assert done.exit_code == 2
    assert "swifti2v-detail" in done.output


def test_clips_take_the_place_of_prompts_for_a_video(tmp_path: Path) -> None:
    done = invoke("encode", tmp_path, tmp_path, "-o", tmp_path / "out", "--family", "swifti2v-motion")
    refused(done, "TrainingError", "has no video settings")
    assert not (tmp_path / "out").exists()


def test_networks_that_measure_have_one_place(tmp_path: Path) -> None:
    refused(invoke("data", "metrics", "-o", tmp_path / "mine"), "UsageError", "Leave -o out")
    assert not list(tmp_path.iterdir())


def test_pictures_are_not_evaluated_without_their_teacher(tiny_checkpoint: Path, tmp_path: Path) -> None:
    refused(invoke("eval", tiny_checkpoint, "-o", tmp_path / "out"), "UsageError", "--teacher")
    assert not (tmp_path / "out").exists()


def test_a_video_model_that_does_not_say_how_it_is_sampled_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model/detail_transformer").mkdir(parents=True)
    (tmp_path / "model/detail_transformer/config.json").write_text("{}")
    done = invoke("eval", tmp_path / "model", "-o", tmp_path / "out")
    refused(done, "TrainingError", "has no video settings")
    assert not (tmp_path / "out").exists()


def test_what_an_evaluation_lacks_is_told_before_a_model_is_loaded(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluate, "load_pipeline", load)
    options = ("--teacher", tiny_checkpoint, "--data", tmp_path / "nowhere", "-o", tmp_path / "out")
    refused(invoke("eval", tiny_checkpoint, *options), "TrainingError", "nowhere has no emoji data. Run: segue data")
    monkeypatch.setattr(videos, "VideoModel", load)
    monkeypatch.setattr(videos, "settings_of", lambda path: None)
    (tmp_path / "model/detail_transformer").mkdir(parents=True)
    options = ("--data", tmp_path / "nowhere", "-o", tmp_path / "out")
    refused(invoke("eval", tmp_path / "model", *options), "TrainingError", "nowhere has no emoji clips")


def test_libraries_are_quiet_while_a_command_shows_its_own_progress(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red " * 200 + "\n")  # the tokenizer would warn of its length
    command = [sys.executable, "-m", "segue", "encode", tiny_checkpoint, tmp_path / "prompts.txt"]
    command += ["-o", tmp_path / "texts"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'texts'}: 1 prompts\n", "")


def test_a_dry_run_of_a_recipe_without_distillation_tells_its_steps() -> None:
    done = invoke("train", "emoji-teacher", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    event = json.loads(done.output)
    assert (event["task"], event["steps"].isdigit()) == ("teacher", True)
    assert event["memory and time"] == "not planned: only a distillation, [cdm], has a plan"


def test_a_dry_run_plans_many_processes_and_a_run_does_not_start_them(tmp_path: Path) -> None:
    done = invoke("train", "sd3-medium-cdm", "--dry-run", "--processes", 8, "--json")
    assert done.exit_code == 0, done.output
    (event,) = [json.loads(line) for line in done.output.splitlines()]
    assert event["event"] == "plan"
    assert event["transformer"].startswith("2028.3 M parameters")
    assert re.fullmatch(r"\d+ updates of the student, \d+ (years|days) on this processor", event["the run"])
    refused(invoke("train", "sd3-medium-cdm", "--processes", 8), "UsageError", "torchrun")
