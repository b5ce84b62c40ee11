"""Decoded pixels become bytes as diffusers makes them, in every precision."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from segue.runtime.sampling.latents import to_bytes


def theirs(pixels):
    """Return the bytes that diffusers makes of float pixels [n, 3, height, width]."""
    processor = VaeImageProcessor()
    floats = processor.denormalize(torch.from_numpy(pixels)).permute(0, 2, 3, 1).float().numpy()
    return np.stack([np.asarray(picture) for picture in processor.numpy_to_pil(floats)])


def test_every_finite_float16_becomes_the_byte_of_diffusers():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = np.where(np.isfinite(halves), halves, 0).reshape(1, 1, 256, 256).repeat(3, 1)
    assert np.array_equal(to_bytes(finite), theirs(finite))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_pixels_in_any_layout_become_the_bytes_of_diffusers(dtype):
    wide = np.random.default_rng(0).standard_normal((2, 40, 3, 24)).astype(dtype)
    pixels = wide.transpose(0, 2, 1, 3)[..., ::2]
    assert np.array_equal(to_bytes(pixels), theirs(np.ascontiguousarray(pixels)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_no_number_or_out_of_range_becomes_a_bound(dtype):
    given = np.array([np.nan, np.inf, -np.inf, 3, -3], dtype).reshape(1, 1, 1, 5).repeat(3, 1)
    assert to_bytes(given)[0, 0, :, 0].tolist() == [0, 255, 0, 255, 0]
