"""A distillation from its recipe to the student's checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segue.errors import TrainingError
from segue.training.cdm.data.conditions import write_conditions
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
from segue.training.loop import device
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
    assert (made / "vae/config.json").is_file()
    assert "_name_or_path" not in (made / "transformer/config.json").read_text()
    with Image.open(tmp_path / "run/grid-00000004.png") as grid:
        assert grid.size == (7 * 32, 32)  # a row of the seven prompts there are
    settings = json.loads((made / "segue.json").read_text())
    assert settings.pop("source").startswith("segue: CDM student of ")
    assert settings == {"steps": 4, "guidance": 1.0, "sigmas": [1.0, 0.75, 0.5, 0.25], "revision": "1"}
    found, before = (
        SD3Transformer2DModel.from_pretrained(f / "transformer", torch_dtype=torch.float32).state_dict()
        for f in (made, teacher)
    )
    assert found.keys() == before.keys()
    moved = {name for name in found if (found[name] - before[name]).norm() > 1e-3 * before[name].norm()}
    assert moved
    average = {n.removeprefix("average."): t for n, t in state(tmp_path / "run").items() if n.startswith("average.")}
    if not rank:
        for name, tensor in average.items():
            assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-4), name
        return
    adapted = {name.removesuffix(".lora_A.weight") for name in average if name.endswith(".lora_A.weight")}
    assert moved <= {f"{name}.weight" for name in adapted}
    for name in adapted:
        change = 64.0 * average[f"{name}.lora_B.weight"] @ average[f"{name}.lora_A.weight"]  # alpha / rank = 128 / 2
        assert torch.allclose(found[f"{name}.weight"], before[f"{name}.weight"] + change, rtol=1e-3, atol=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_that_were_killed_go_on_bit_for_bit(recipe, tmp_path: Path, shard: bool) -> None:
    def start(steps: int, out: str) -> subprocess.Popen:
        path = recipe(steps, **{"size = [32, 32]": f"size = [32, 32]\nshard = {str(shard).lower()}"})
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "segue.cli",
             "train", path, "--out", tmp_path / out],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    killed = start(4000, "killed")
    while not list((tmp_path / "killed").glob("state-*")):
        assert killed.poll() is None
        time.sleep(0.01)
    for process in (*psutil.Process(killed.pid).children(recursive=True), killed):
        process.kill()
    killed.wait()
    steps = max(int(path.name[-8:]) for path in (tmp_path / "killed").glob("state-*")) + 2
    for out in ("killed", "unbroken"):
        assert start(steps, out).wait(300) == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "unbroken")
    files = [sorted((tmp_path / out).glob("state-*/*.safetensors")) for out in ("unbroken", "killed")]
    assert len(files[0]) == len(files[1]) == 2  # each process wrote a part
    for expected, found in zip(*files, strict=True):
        one, other = load_file(expected), load_file(found)
        assert one.keys() == other.keys()
        assert all(other[name].equal(tensor) for name, tensor in one.items())
    made = [load_file(f) for f in sorted(tmp_path.glob("*/checkpoint/transformer/*.safetensors"))]
    assert len(made) == 2
    assert all(made[1][name].equal(tensor) for name, tensor in made[0].items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank = 0": "student_every = 0"}, r"student_every = 0 is not possible"),
        ({"size = [32, 32]": "size = [33, 32]"}, r"size = \(33, 32\) is not possible"),
        ({"fake_learning_rate = 1e-3": "fake_learning_rate = -1.0"}, r"fake_learning_rate = -1\.0 is not possible"),
        ({"rank = 0": "rank = 2\nshard = true"}, "rank and shard"),
        ({"rank = 0": "rank = 2\ncompile = true"}, "compile needs whole networks"),
        ({"rank = 0": "shard = true"}, "torchrun"),
        ({"warmup = 1": "ema = 0.9"}, r"\[loop\] ema has no effect"),
        ({"warmup = 1": 'optimiser = "muon"'}, r"\[loop\] optimiser has no effect"),
        ({"longest = 3": "longest = 3\nshift = 0.0"}, "shift = 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(recipe(2, **change), tmp_path / "run", quiet)


def test_embeddings_of_another_model_are_refused(recipe, conditions: Path, tmp_path: Path) -> None:
    write_conditions(tmp_path / "wide", ["a"], lambda prompts: {"states": torch.ones(len(prompts), 5, 30)})
    with pytest.raises(TrainingError, match="segue encode, by this teacher"):
        train(recipe(2, **{str(conditions): str(tmp_path / "wide")}), tmp_path / "run", quiet)


def test_a_schedule_of_another_shift_than_the_teachers_sampler_is_refused(
    recipe, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    (tmp_path / "teacher/scheduler").mkdir()
    (tmp_path / "teacher/scheduler/scheduler_config.json").write_text('{"shift": 2.0}')
    with pytest.raises(TrainingError, match=r"shift = 3, but .* has 2"):
        train(recipe(2, **{str(teacher): str(tmp_path / "teacher")}), tmp_path / "run", quiet)


def test_a_misspelt_key_of_a_subtable_is_named(recipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"\[cdm\.schedule\] has no key 'longes'"):
        train(recipe(2, longest="longes"), tmp_path / "run", quiet)


def test_a_teacher_that_is_not_there_is_named(recipe, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere has no transformer/config\.json"):
        train(recipe(2, **{str(teacher): "nowhere"}), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()
