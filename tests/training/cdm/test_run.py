"""A distillation from its recipe to the student's checkpoint."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segue.errors import TrainingError
from segue.training.recipe import train

RECIPE = """
[cdm]
teacher = "{teacher}"
conditions = "{conditions}"
size = [32, 32]
rank = {rank}
fake_learning_rate = 1e-3

[cdm.schedule]
longest = 3

[cdm.terms]
guidance = 3.0

[loop]
steps = {steps}
batch = 2
learning_rate = 1e-3
warmup = 1
save_every = 2
grid_every = 2
"""


@pytest.fixture
def recipe(teacher: Path, conditions: Path, tmp_path: Path):
    def write(steps: int, rank: int = 0, **changes: str) -> Path:
        text = RECIPE.format(teacher=teacher, conditions=conditions, steps=steps, rank=rank)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / f"cdm-{steps}-{rank}.toml"
        path.write_text(text)
        return path

    return write


def quiet(step: int, steps: int, figures: dict[str, float]) -> None:
    pass


def curve(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


def state(out: Path) -> dict[str, torch.Tensor]:
    (file,) = out.glob("state-*/*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "LoRA"])
def test_a_run_in_two_parts_is_the_unbroken_one_bit_for_bit(recipe, tmp_path: Path, rank: int) -> None:
    train(recipe(6, rank), tmp_path / "unbroken", quiet)
    train(recipe(2, rank), tmp_path / "parts", quiet)
    train(recipe(6, rank), tmp_path / "parts", quiet)
    assert curve(tmp_path / "parts") == curve(tmp_path / "unbroken")
    expected, found = state(tmp_path / "unbroken"), state(tmp_path / "parts")
    assert expected.keys() == found.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_a_killed_run_goes_on_to_the_same_curve(recipe, tmp_path: Path) -> None:
    path = recipe(6)
    train(path, tmp_path / "unbroken", quiet)
    program = f"""
import time
from pathlib import Path
from segue.training import device
from segue.training.recipe import train
import torch
device.fast_dtype = lambda _: torch.float32
def report(step, steps, figures):
    print(step, flush=True)
    time.sleep(0.1)
train(Path({str(path)!r}), Path({str(tmp_path / "killed")!r}), report)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "3":
            os.kill(child.pid, signal.SIGKILL)
            break
    child.wait()
    train(path, tmp_path / "killed", quiet)
    assert curve(tmp_path / "killed") == curve(tmp_path / "unbroken")


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "LoRA"])
def test_the_checkpoint_holds_the_students_average(recipe, teacher: Path, tmp_path: Path, rank: int) -> None:
    from diffusers import SD3Transformer2DModel

    train(recipe(4, rank), tmp_path / "run", quiet)
    made = tmp_path / "run/checkpoint"
    assert json.loads((made / "segue.json").read_text()) == {
        "steps": 4,
        "guidance": 1.0,
        "sigmas": [1.0, 0.75, 0.5, 0.25],
    }
    found, before = (
        SD3Transformer2DModel.from_pretrained(f / "transformer", torch_dtype=torch.float32).state_dict()
        for f in (made, teacher)
    )
    assert found.keys() == before.keys()
    moved = {name for name in found if (found[name] - before[name]).norm() > 1e-3 * before[name].norm()}
    assert moved
    if not rank:
        average = state(tmp_path / "run")
        for name in moved:
            assert torch.allclose(found[name], average[f"average.{name}"], rtol=1e-3, atol=1e-4)


def test_a_misspelt_key_of_a_subtable_is_named(recipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"\[cdm\.schedule\] has no key 'longes'"):
        train(recipe(2, longest="longes"), tmp_path / "run", quiet)


def test_a_teacher_that_is_not_there_is_named(recipe, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere has no transformer/config\.json"):
        train(recipe(2, **{str(teacher): "nowhere"}), tmp_path / "run", quiet)
