"""The linear map from latents to RGB that export fits for previews."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL

from segue.export.checks.preview import averaged, dead_leaves, fitted, least_squares
from segue.export.checks.preview_child import fit
from segue.runtime.bundle.families import VAE_DECODER, VAE_ENCODER
from segue.runtime.bundle.manifest import Latents
from segue.runtime.bundle.reader import read
from support.bundles import make_model

SPEC = Latents(5, 8, 2, 1.5, 0.25)


def linear(folder):
    """Write an encoder and a decoder that are linear; return their files, and the map from the decoder's latents."""
    rng = np.random.default_rng(3)
    factors, bias = 0.1 * rng.standard_normal((SPEC.channels, 3)), 0.1 * rng.standard_normal(3)
    weights = {
        "down": (rng.standard_normal((SPEC.channels, 3, 8, 8)) / 16).astype("float32"),
        "up": np.repeat(np.repeat(factors[:, :, None, None], 8, 2), 8, 3).astype("float32"),
        "bias": bias.astype("float32"),
    }
    latents, pixels = ("latents", "float32", ["n", 5, "h", "w"]), ("pixels", "float32", ["n", 3, "y", "x"])
    encoder = [("Conv", ["pixels", "down"], ["latents"], {"strides": [8, 8]})]
    decoder = [("ConvTranspose", ["latents", "up", "bias"], ["pixels"], {"strides": [8, 8]})]
    onnx.save(make_model(encoder, [pixels], [latents], {"down": weights.pop("down")}), folder / "encoder.onnx")
    onnx.save(make_model(decoder, [latents], [pixels], weights), folder / "decoder.onnx")
    return {VAE_ENCODER: folder / "encoder.onnx", VAE_DECODER: folder / "decoder.onnx"}, factors, bias


def test_a_linear_decoder_gives_its_own_map(tmp_path):
    graphs, factors, bias = linear(tmp_path)
    *found, last = np.array(fit(graphs, SPEC))
    # The decoder gets z / scaling + shift of the latents z that the map takes
    assert found == pytest.approx(factors / SPEC.scaling, abs=2e-6)
    assert last == pytest.approx(bias + SPEC.shift * factors.sum(0), abs=2e-6)


def test_an_export_stores_the_map_of_the_checkpoint_s_own_autoencoder(exported):
    content = read(exported).manifest
    spec, vae = content.latents, AutoencoderKL.from_pretrained(exported / "vae").eval()
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(np.stack([dead_leaves(rng, 128) for _ in range(8)]))
    with torch.inference_mode():
        latents = vae.encode(pictures).latent_dist.mean
        decoded = vae.decode(latents).sample.numpy()
    scaled = ((latents - spec.shift) * spec.scaling).numpy()
    expected = least_squares(scaled, averaged(decoded, spec.factor))
    assert np.array([*content.preview.factors, content.preview.bias]) == pytest.approx(expected, rel=1e-2, abs=1e-3)


@pytest.mark.slow
def test_an_autoencoder_in_bf16_is_fitted_through_copies_in_fp32(exported, bf16_bundle):
    wide, narrow = (read(bundle).manifest.preview for bundle in (exported, bf16_bundle))
    assert narrow != wide
    assert np.array(narrow.factors) == pytest.approx(np.array(wide.factors), rel=0.1, abs=5e-3)


def test_pictures_to_fit_with_have_all_colours_and_are_the_same_each_time():
    one, again = (dead_leaves(np.random.default_rng(5), 64) for _ in range(2))
    assert np.array_equal(one, again)
    assert (one.shape, one.min(), one.max()) == ((3, 64, 64), -1, 1)
    assert one.std() > 0.3


def test_a_bundle_without_an_encoder_or_of_videos_gets_no_map():
    content = read("emoji").manifest
    rest = {name: part for name, part in content.components.items() if name != VAE_ENCODER}
    assert fitted(read("emoji").directory, dataclasses.replace(content, components=rest)) is None
    assert fitted(read("emoji-motion").directory, read("emoji-motion").manifest) is None


def test_a_failed_fit_is_told_and_leaves_the_bundle_without_a_map(tmp_path):
    told = []
    assert fitted(tmp_path, read("emoji").manifest, told.append) is None  # no graphs there
    assert told[0].startswith("previews have no linear map: ")
