"""The whole chain on plain pictures: the checkpoint that training writes is one that diffusers and Segue take."""

from pathlib import Path

import pytest
import torch

import segue
from segue.errors import TrainingError
from segue.export.export import export
from segue.runtime.sampling.schedule import default_schedule
from segue.training.pictures import teacher
from segue.training.pictures.autoencoder import Autoencoder, AutoencoderSpec
from segue.training.recipe import train

RECIPE = """
[teacher]
data = "{data}"
autoencoder = "{parts}"
text = "{text}"
layers = 1
heads = 2
head = 8
joint_width = 40
positions = 16

[loop]
steps = 2
batch = 2
learning_rate = 1e-3
grid_every = 2
save_every = 1
"""


@pytest.fixture(scope="module")
def checkpoint(pictures: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    spec = AutoencoderSpec(str(pictures), channels=(8, 8, 8, 16), groups=4)
    Autoencoder(spec, seed=0).finish(folder / "parts")
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(data=pictures, parts=folder / "parts", text=tiny_checkpoint))
    train(recipe, folder / "run", lambda *_: None)
    assert (folder / "run/grid-00000002.png").is_file()
    return folder / "run/checkpoint"


def test_diffusers_loads_and_renders_the_checkpoint(checkpoint: Path) -> None:
    from segue.export.checks.oracle import load_pipeline

    pipeline = load_pipeline(checkpoint)
    picture = pipeline("red", height=128, width=128, num_inference_steps=1, max_sequence_length=0).images[0]
    assert picture.size == (128, 128)


def test_the_checkpoint_tells_no_path_that_it_was_made_from(checkpoint: Path) -> None:
    assert not any("_name_or_path" in path.read_text() for path in checkpoint.rglob("config.json"))


def test_a_run_that_is_finished_again_replaces_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    recipe = checkpoint.parent.parent / "tiny.toml"
    again = recipe.with_name("again.toml")
    parts, away = recipe.parent / "parts", recipe.parent / "away"
    longer = recipe.with_name("longer.toml")
    longer.write_text(recipe.read_text().replace("steps = 2", "steps = 3"))
    run = tmp_path / "run"
    train(recipe, run, lambda *_: None)
    with pytest.raises(TrainingError, match=r"cannot be written.*Restore the recipe's input files"):
        train(longer, run, lambda *_: parts.rename(away))
    assert '"guidance": 4.0' in (run / "checkpoint/segue.json").read_text()  # what there was is not lost
    away.rename(parts)
    again.write_text(longer.read_text().replace("positions = 16", "positions = 16\nguidance = 2.0"))
    train(again, run, lambda *_: None)
    assert '"guidance": 2.0' in (run / "checkpoint/segue.json").read_text()


@pytest.mark.slow
def test_the_checkpoint_becomes_a_bundle_with_its_own_settings(checkpoint: Path, tmp_path: Path) -> None:
    made = export(checkpoint, tmp_path / "bundle", parity=False)
    assert made.t5_tokens == 0
    assert made.components["transformer"].precision == "fp16"
    assert made.sampler.guidance == 4.0
    with segue.open(tmp_path / "bundle") as model:
        assert model.generate("red", steps=1).shape == (128, 128, 3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_grids_are_drawn_as_diffusers_draws(checkpoint: Path, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.export.checks.oracle import load_pipeline as diffusers_pipeline
    from segue.training.loop import device
    from segue.training.pictures import sampling

    monkeypatch.setattr(device, "fast_dtype", lambda _: torch.float32)
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = diffusers_pipeline(checkpoint)(
        ["red", "blue, noto"], latents=noise, height=128, width=128, num_inference_steps=3, guidance_scale=guidance,
        max_sequence_length=0, output_type="latent",
    ).images  # fmt: skip
    pipeline = sampling.load_pipeline(checkpoint, torch.device("cpu"))
    found = pipeline.draw(["red", "blue, noto"], noise, default_schedule(3, 3.0, 1000), guidance, batch=1)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert pipeline.decode(found, batch=1).shape == (2, 3, 128, 128)


def test_the_teacher_resumes_to_the_curve_of_an_unbroken_run(checkpoint: Path, tmp_path: Path) -> None:
    recipe = checkpoint.parent.parent / "tiny.toml"
    longer = tmp_path / "longer.toml"
    longer.write_text(recipe.read_text().replace("steps = 2", "steps = 4"))
    train(recipe, tmp_path / "resumed", lambda *_: None)
    train(longer, tmp_path / "resumed", lambda *_: None)
    train(longer, tmp_path / "unbroken", lambda *_: None)
    resumed, unbroken = ((tmp_path / run / "losses.jsonl").read_text() for run in ("resumed", "unbroken"))
    assert resumed == unbroken
    assert len(unbroken.splitlines()) == 4


def test_every_residual_branch_starts_closed() -> None:
    from diffusers import SD3Transformer2DModel

    net = SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
    )
    teacher.initialise(net)
    out = net(torch.randn(1, 16, 8, 8), torch.randn(1, 3, 16), torch.randn(1, 8), torch.tensor([500.0]))
    assert out.sample.abs().max() == 0
