import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segue.errors import Cancelled, TrainingError
from segue.training.loop.run import LoopSpec, learning_rate, step_generator
from segue.training.recipe import train

RECIPE = """
[autoencoder]
data = "{data}"
channels = [8, 8, 8, 16]
groups = 4
crop = 32

[loop]
steps = {steps}
batch = 2
optimiser = "muon"
learning_rate = 1e-3
warmup = 2
decay = 2
save_every = 3
grid_every = 100
"""


def recipe(folder: Path, data: Path, steps: int) -> Path:
    path = folder / f"tiny-{steps}.toml"
    path.write_text(RECIPE.format(data=data, steps=steps))
    return path


def quiet(step: int, steps: int, figures: dict[str, float]) -> None:
    pass


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "losses.jsonl").read_text().splitlines()]


def tensors_of(state: Path) -> dict[str, torch.Tensor]:
    (file,) = state.glob("*.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train(recipe(folder, pictures, 10), folder / "run", quiet)
    return folder / "run"


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_curve_and_weights_bit_for_bit(
    tmp_path: Path, pictures: Path, unbroken: Path
) -> None:
    path, out = recipe(tmp_path, pictures, 10), tmp_path / "run"
    program = f"""
import sys, time
from pathlib import Path
from segue.training.recipe import train
def report(step, steps, figures):
    print(step, flush=True)
    time.sleep(0.05)
train(Path({str(path)!r}), Path({str(out)!r}), report)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "5":  # the newest state on disk is that of step 3
            os.kill(child.pid, signal.SIGKILL)
            break
    child.wait()
    (state,) = out.glob("state-*")
    assert "state-00000003" <= state.name < "state-00000010"
    train(path, out, quiet)
    assert losses(out) == losses(unbroken)
    expected, found = (tensors_of(run / "state-00000010") for run in (unbroken, out))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name


def test_ctrl_c_keeps_the_last_saved_state(tmp_path: Path, pictures: Path) -> None:
    def press(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(Cancelled, match=r"stopped at step 4.*go on from the last saved state"):
        train(recipe(tmp_path, pictures, 10), tmp_path / "run", press)
    assert [path.name for path in (tmp_path / "run").glob("state-*")] == ["state-00000003"]
    assert not (tmp_path / "run/vae").exists()


@pytest.mark.slow
def test_a_half_written_state_is_never_taken_for_a_whole_one(tmp_path: Path, pictures: Path, unbroken: Path) -> None:
    path, out = recipe(tmp_path, pictures, 10), tmp_path / "run"
    (out / ".state-00000009.tmp").mkdir(parents=True)
    (out / ".state-00000009.tmp/state.safetensors").write_bytes(b"torn")
    train(path, out, quiet)
    assert losses(out) == losses(unbroken)


@pytest.mark.slow
def test_more_steps_go_on_from_where_a_run_ended(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "run"
    train(recipe(tmp_path, pictures, 4), out, quiet)
    train(recipe(tmp_path, pictures, 6), out, quiet)
    assert len(losses(out)) == 6


@pytest.mark.slow
def test_another_recipe_does_not_go_on_in_the_same_place(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "run"
    train(recipe(tmp_path, pictures, 3), out, quiet)
    changed = tmp_path / "changed.toml"
    changed.write_text(RECIPE.format(data=pictures, steps=3).replace("1e-3", "2e-3"))
    with pytest.raises(TrainingError, match=r"loop\.learning_rate differ.*--out"):
        train(changed, out, quiet)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "hot.toml"
    path.write_text(RECIPE.format(data=pictures, steps=40).replace("1e-3", "1e30"))
    with pytest.raises(TrainingError, match=r"the loss became .* at step"):
        train(path, tmp_path / "run", quiet)


@pytest.mark.slow
def test_the_loss_falls_and_the_result_is_a_diffusers_autoencoder(tmp_path: Path, pictures: Path) -> None:
    from diffusers import AutoencoderKL

    out = tmp_path / "run"
    train(recipe(tmp_path, pictures, 30), out, quiet)
    curve = losses(out)
    assert sum(curve[-5:]) < 0.95 * sum(curve[:5]), curve
    assert AutoencoderKL.from_pretrained(out / "vae").config.latent_channels == 16


def test_two_seeds_draw_differently() -> None:
    def draw(seed: int, step: int) -> float:
        return torch.rand((), generator=step_generator(seed, step)).item()

    assert draw(0, 3) == draw(0, 3)
    assert len({draw(seed, step) for seed in range(4) for step in range(4)}) == 16


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing() -> None:
    spec = LoopSpec(steps=100, batch=1, learning_rate=2.0, warmup=10, decay=20)
    assert learning_rate(spec, 0) == pytest.approx(0.2)
    assert learning_rate(spec, 50) == 2.0
    assert learning_rate(spec, 90) == pytest.approx(1.0)
    assert 0 < learning_rate(spec, 99) < 0.02
