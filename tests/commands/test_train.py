"""The commands that make models: what they need, what they refuse, what they write."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from segue import cli
from segue.errors import SegueError
from segue.training.cdm.data.pairs import Pairs


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


def test_a_dry_run_plans_many_processes_and_a_run_does_not_start_them(tmp_path: Path) -> None:
    done = invoke("train", "sd3-medium-cdm", "--dry-run", "--processes", 8, "--json")
    assert done.exit_code == 0, done.output
    (event,) = [json.loads(line) for line in done.output.splitlines()]
    assert event["event"] == "plan"
    assert event["transformer"].startswith("2028.3 M parameters")
    refused(invoke("train", "sd3-medium-cdm", "--processes", 8), "UsageError", "torchrun")
