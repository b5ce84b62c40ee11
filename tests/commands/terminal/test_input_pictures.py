"""The options for input pictures: what is read, and what an error says of which option."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import segue
from segue.cli import cli
from segue.commands.terminal import input_pictures
from segue.runtime.diagnostics.compare import usual_request


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a picture, a mask of its size, and a smaller one."""
    rows, columns = np.mgrid[0:64, 0:64]
    mask = np.zeros((64, 64), np.uint8)
    mask[8:32, 8:40] = 255
    Image.fromarray(np.stack([rows * 3, columns * 3, rows + columns], -1).astype(np.uint8)).save(tmp_path / "in.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:32]).save(tmp_path / "small.png")
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words, data=None):
    return CliRunner().invoke(cli, list(words), input=data)


DRAW = ("render", "emoji", "pizza", "--size", "64", "--seed", "1", "-o", "out.png")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["--image", "in.png", "--strength", "0.5"], {"strength": 0.5}),
        (["--image", "in.png", "--mask", "mask.png", "--feather", "2"], {"mask": "mask.png", "feather": 2}),
    ],
)
def test_a_command_draws_what_the_model_draws(folder, words, arguments):
    told = run(*DRAW, *words)
    assert told.exit_code == 0, told.output
    if "mask" in arguments:
        arguments = arguments | {"mask": segue.read_mask("mask.png")}
    with segue.open("emoji") as model:
        expected = model.generate("pizza", size=64, seed=1, image=segue.read_image("in.png"), **arguments)
    assert np.array_equal(np.asarray(Image.open("out.png")), expected)
    metadata = segue.read_metadata("out.png")
    assert metadata["strength"] == arguments.get("strength", 1.0)
    assert metadata.get("feather") == arguments.get("feather")


def test_a_picture_comes_from_standard_input(folder):
    told = run(*DRAW, "--image", "-", data=(folder / "in.png").read_bytes())
    assert told.exit_code == 0, told.output
    first = np.asarray(Image.open("out.png"))
    assert run(*DRAW, "--image", "in.png").exit_code == 0
    assert np.array_equal(np.asarray(Image.open("out.png")), first)


def test_what_comes_from_standard_input_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(input_pictures, "MAX_PIPE", 2**20)
    told = run(*DRAW, "--image", "-", data=b"x" * (2**20 + 1))
    assert told.exit_code == 1
    assert "standard input holds more than 1 MiB" in str(told.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask", "mask.png"], "--mask works on a picture. Give --image too"),
        (["--strength", "0.5"], "--strength works on a picture. Give --image too"),
        (["--feather", "2"], "--feather works on a picture. Give --image too"),
        (["--image", "in.png", "--feather", "2"], "--feather softens the edge of a mask. Give --mask too"),
        (["--image", "in.png", "--mask", "small.png"], "--mask small.png has 64x32 pixels and --image in.png 64x64"),
        (["--image", "none.png"], "--image none.png cannot be read as a picture"),
        (["--image", "in.png", "--mask", "text.txt"], "--mask text.txt cannot be read as a picture"),
        (["--reference", "text.txt"], "--reference text.txt cannot be read as a picture"),
        (["--reference", "in.png"], "emoji takes no reference pictures"),
        (["--image", "-", "--mask", "-"], "standard input holds one picture"),
        (["--image", "in.png", "--strength", "0"], "Invalid value for '--strength'"),
        (["--image", "in.png", "--strength", "1.5"], "Invalid value for '--strength'"),
        (["--image", "in.png", "--mask", "mask.png", "--feather", "-1"], "Invalid value for '--feather'"),
    ],
)
@pytest.mark.parametrize("command", [DRAW, ("plan", "emoji", "--device", "cpu", "--size", "64")])
def test_an_error_names_the_option(folder, command, words, message):
    told = run(*command, *words)
    assert told.exit_code != 0
    assert message in (told.output + str(told.exception))


def test_a_plan_counts_the_encoder_and_the_steps_that_run(folder):
    words = ("plan", "emoji", "--device", "cpu", "--json")

    def calls(*more):
        told = run(*words, *more)
        assert told.exit_code == 0, told.output
        return {phase["component"]: phase["calls"] for phase in json.loads(told.output.splitlines()[-1])["phases"]}

    plain = calls()
    assert calls("--image", "in.png", "--strength", "0.5") == plain | {"vae_encoder": 1, "transformer": 2}
    assert calls("--image", "in.png", "--mask", "mask.png") == plain | {"vae_encoder": 1}
    assert run(*words, "--image", "in.png", "--timeline", "plan.svg").exit_code == 0
    assert "vae_encoder: " in (folder / "plan.svg").read_text()


@pytest.mark.parametrize("option", ["image", "reference"])
def test_a_plan_of_a_video_refuses_pictures(folder, option):
    told = run("plan", "emoji-motion", f"--{option}", "in.png")
    assert told.exit_code == 2
    assert f"emoji-motion makes videos, so --{option} does not apply" in told.output + str(told.exception)


def test_targets_are_compared_on_the_given_picture_or_on_a_test_pattern(folder):
    told = run("verify", "emoji", "--image", "in.png")
    assert "Give --engines too" in str(told.exception)
    with segue.open("emoji") as model:
        content = model.bundle.manifest
        usual = model.prepare(usual_request(content, {}))
        assert (usual.steps, usual.start.step, usual.start.given) == (4, 0, (128, 128))
        given = {"image": segue.read_image("in.png"), "strength": 0.5}
        assert model.prepare(usual_request(content, given)).steps == 2
