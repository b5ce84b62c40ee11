from pathlib import Path

import pytest
import torch

from segue.errors import TrainingError
from segue.training.pictures.autoencoder import Autoencoder, AutoencoderSpec, normalise_latents


def spec(pictures: Path, **changes: object) -> AutoencoderSpec:
    return AutoencoderSpec(str(pictures), channels=(8, 8, 8, 16), groups=4, crop=64, **changes)  # type: ignore[arg-type]


@torch.no_grad()
def test_normalised_latents_have_unit_moments_and_decode_to_the_same_picture(pictures: Path) -> None:
    task = Autoencoder(spec(pictures), seed=0)
    vae = task.vae.eval()
    pixels = task.pictures.on_white(torch.arange(8))
    before = vae.encode(pixels).latent_dist
    decoded, first = vae.decode(before.mode()).sample, vae.decoder.conv_in(before.mode())
    mean, std = before.mode().mean((0, 2, 3)), before.mode().std((0, 2, 3))
    normalise_latents(vae, mean, std)
    after = vae.encode(pixels).latent_dist
    expected = (before.mode() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(after.mode(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after.std, before.std / std[:, None, None], rtol=1e-3, atol=1e-6)
    # Only the border, where zero padding now stands for the mean, may differ.
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(vae.decoder.conv_in(after.mode())[inside], first[inside], rtol=1e-3, atol=1e-3)
    assert (vae.decode(after.mode()).sample - decoded).abs().mean() < 0.2 * decoded.abs().mean()


@pytest.mark.parametrize("depth", [3, 5])
def test_another_number_of_scales_is_refused(pictures: Path, depth: int) -> None:
    with pytest.raises(TrainingError, match="f8 needs four widths"):
        Autoencoder(AutoencoderSpec(str(pictures), channels=(8,) * depth, groups=4), seed=0)


def test_pickled_weights_are_not_read(pictures: Path, tmp_path: Path) -> None:
    task = Autoencoder(spec(pictures), seed=0)
    task.vae.save_pretrained(tmp_path / "start/vae", safe_serialization=False)
    assert list((tmp_path / "start/vae").glob("*.bin"))
    with pytest.raises(OSError, match="safetensors"):
        Autoencoder(spec(pictures, start=str(tmp_path / "start")), seed=0)


@pytest.mark.slow
def test_a_decoder_learns_on_noisy_latents_that_stay_as_they_are(pictures: Path, tmp_path: Path) -> None:
    Autoencoder(spec(pictures), seed=0).finish(tmp_path / "first")
    task = Autoencoder(spec(pictures, noise=0.5, start=str(tmp_path / "first")), seed=1)
    pixels = task.pictures.on_white(torch.arange(8))
    with torch.no_grad():
        before = task.vae.encode(pixels).latent_dist.mode()
    plain = Autoencoder(spec(pictures, start=str(tmp_path / "first")), seed=1)
    clean, _ = plain.loss(plain.draw(4, torch.Generator().manual_seed(0)))
    noisy, _ = task.loss(task.draw(4, torch.Generator().manual_seed(0)))
    assert noisy.item() != clean.item()
    noisy.backward()
    assert all(p.grad is None for p in task.vae.encoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.vae.decoder.parameters())
    task.finish(tmp_path / "second")
    again = Autoencoder(spec(pictures, start=str(tmp_path / "second")), seed=2)
    with torch.no_grad():
        assert again.vae.encode(pixels).latent_dist.mode().equal(before)
    with pytest.raises(TrainingError, match="Name the trained autoencoder as start"):
        Autoencoder(spec(pictures, noise=0.5), seed=1)
