"""The arithmetic on both sides of the autoencoder, from latents to pictures, as diffusers does it."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..bundle.manifest import Latents


def for_decoder(latents: np.ndarray, spec: Latents) -> np.ndarray:
    """Return denoised latents (any shape) scaled for the decoder, float32."""
    return latents.astype(np.float32) / np.float32(spec.scaling) + np.float32(spec.shift)


def from_encoder(latents: np.ndarray, spec: Latents) -> np.ndarray:
    """Return an encoder's latents (any shape) scaled for the denoiser, float32; undoes `for_decoder`."""
    return (latents.astype(np.float32) - np.float32(spec.shift)) * np.float32(spec.scaling)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Return decoded pixels, float [n, 3, height, width] in [-1, 1], as uint8 [n, height, width, 3].

    Like diffusers' VaeImageProcessor it scales in the decoder's dtype and rounds half to even in float32. Values out of
    range are clipped; NaN gives 0.
    """
    made = np.empty((len(pixels), *pixels.shape[2:], 3), np.uint8)
    for one, out in zip(pixels, made, strict=True):  # a channel at a time: copies of a segment would take much memory
        for channel, plane in enumerate(one):
            narrow = plane.dtype == np.float16
            out[..., channel] = _of_half()[plane.view(np.uint16)] if narrow else _rounded(plane)
    return made


@cache
def _of_half() -> np.ndarray:
    """Return the byte of every float16, by its bits, because numpy's arithmetic on float16 is slow."""
    with np.errstate(invalid="ignore"):
        return _rounded(np.arange(2**16, dtype=np.uint16).view(np.float16))


def _rounded(pixels: np.ndarray) -> np.ndarray:
    half = pixels.dtype.type(0.5)
    levels = np.clip(pixels * half + half, 0, 1).astype(np.float32) * np.float32(255)
    return np.nan_to_num(levels, copy=False, nan=0.0).round().astype(np.uint8)
