from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from segue.errors import TrainingError
from segue.training.loop.networks import pretrained
from segue.training.loop.run import step_generator
from segue.training.recipe import train
from segue.training.video.codec import Codec, CodecSpec

RECIPE = """
[codec]
data = "{data}"
kind = "{kind}"
base = 4
decoder_base = 4
widths = [1, 1, 1, 1]
latents = 4
frames = 5
crop = 32
lpips_weight = 0.0

[loop]
steps = {steps}
batch = 2
learning_rate = 3e-3
warmup = 1
save_every = 2
grid_every = 2
"""


@pytest.mark.parametrize("kind", [pytest.param("2.1", marks=pytest.mark.slow), "2.2"])
def test_a_codec_is_trained_resumed_and_written(clips: Path, tmp_path: Path, kind: str) -> None:
    losses: list[float] = []
    for steps in (2, 4):
        (tmp_path / "recipe.toml").write_text(RECIPE.format(data=clips, kind=kind, steps=steps))
        train(tmp_path / "recipe.toml", tmp_path / "run", lambda step, steps, figures: losses.append(figures["loss"]))
    assert len(losses) == 4
    assert (tmp_path / "run/grid-00000004.png").is_file()
    vae = pretrained(AutoencoderKLWan, tmp_path / "run/vae")
    assert vae.spatial_compression_ratio == (8 if kind == "2.1" else 16)
    assert vae.config.latents_mean != [0.0] * 4
    assert all(deviation > 0 for deviation in vae.config.latents_std)


def test_what_is_drawn_depends_on_the_step_alone_and_shrinks_as_asked(clips: Path) -> None:
    codec = Codec(
        CodecSpec(str(clips), base=4, decoder_base=4, latents=4, frames=5, crop=16, scale=4, lpips_weight=0), 0
    )
    one, same, other = (codec.draw(3, step_generator(0, step)) for step in (1, 1, 2))
    assert torch.equal(one.video, same.video)
    assert not torch.equal(one.noise, other.noise)
    assert one.video.shape == (3, 5, 64, 64, 3)
    assert one.noise.shape == (3, 4, 2, 2, 2)
    loss, figures = codec.loss(one)
    loss.backward()
    assert all(p.grad is not None for p in codec.module.parameters())
    assert set(figures) == {"kl", "psnr"}


@pytest.mark.parametrize(
    "change", [{"kind": "3"}, {"frames": 8}, {"crop": 24, "kind": "2.2"}, {"scale": 3}, {"crop": 64, "scale": 4}]
)
def test_a_codec_that_cannot_be_is_refused(change: dict) -> None:
    with pytest.raises(TrainingError, match="is not possible"):
        CodecSpec("data", **change)


def test_a_wider_decoder_learns_on_noisy_latents_that_stay_as_they_are(clips: Path, tmp_path: Path) -> None:
    shared = {"kind": "2.2", "base": 4, "latents": 4, "frames": 5, "crop": 32, "lpips_weight": 0.0}
    Codec(CodecSpec(str(clips), decoder_base=4, **shared), 0).finish(tmp_path / "first")  # type: ignore[arg-type]
    start = pretrained(AutoencoderKLWan, tmp_path / "first/vae")
    spec = CodecSpec(str(clips), decoder_base=8, noise=0.5, start=str(tmp_path / "first"), **shared)  # type: ignore[arg-type]
    task = Codec(spec, 1)
    drawn = task.draw(2, step_generator(0, 0))
    loss, _ = task.loss(drawn)
    clean, _ = task.loss(replace(drawn, added=torch.zeros(())))
    assert loss.item() != clean.item()
    loss.backward()
    assert all(p.grad is None for p in task.vae.encoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.vae.decoder.parameters())
    task.finish(tmp_path / "second")
    made = pretrained(AutoencoderKLWan, tmp_path / "second/vae")
    video = torch.rand(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert made.encode(video).latent_dist.mode().equal(start.encode(video).latent_dist.mode())
    assert made.config.latents_std == start.config.latents_std
    assert made.config.decoder_base_dim == 8


def test_noise_without_a_codec_to_start_from_is_refused(clips: Path) -> None:
    with pytest.raises(TrainingError, match=r"\[codec\] noise = 0.2.*needs a start"):
        CodecSpec(str(clips), noise=0.2)
