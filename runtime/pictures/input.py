"""Input pictures on their way to the denoiser: their latents, where a run begins, and what a mask keeps.

Sources: the image-to-image and inpainting pipelines of diffusers 0.42.1 for the same families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..bundle.families import LOGVAR, VAE_ENCODER
from ..components import Cancel, Components
from ..input_picture import Start
from ..request import Prepared
from ..sampling import latents as latent_space
from ..sampling.recurrence import Schedule
from ..sampling.tiles import Tiling, blend, make_tiles

SPREAD = (-30.0, 20.0)  # bounds of the posterior's log variance, as in diffusers


@dataclass(frozen=True, eq=False)
class Beginning:
    """A picture's latents, float32 [1, channels, height / factor, width / factor], and the mask of the latents."""

    picture: np.ndarray
    mask: np.ndarray | None

    def latents(self, schedule: Schedule, start: Start, noise: np.ndarray) -> np.ndarray:
        """Return the latents before the first step that runs."""
        if start.whole:
            return noise * np.float32(schedule.scale)
        return schedule.mixed(start.step, self.picture, noise)

    def blender(self, schedule: Schedule, noise: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray] | None:
        """Return the function that puts the kept part back after each step of `schedule`; None without a mask."""
        if (mask := self.mask) is None:
            return None

        def put_back(step: int, latents: np.ndarray) -> np.ndarray:
            return (1 - mask) * schedule.mixed(step, self.picture, noise) + mask * latents

        return put_back


def begin(components: Components, prepared: Prepared, cancel: Cancel | None, tiling: Tiling | None) -> Beginning | None:
    """Return the beginning of a request, None if it gives no picture; tile by tile with `tiling`."""
    start = prepared.start
    if start is None:
        return None
    spec = components.bundle.manifest.latents
    drawn = prepared.posterior() if prepared.drawn else None
    return Beginning(
        encode_picture(components, start.pixels, drawn, cancel, tiling),
        None if start.mask is None else start.latent_mask(spec.factor),
    )


def encode_picture(
    components: Components, pixels: np.ndarray, drawn: np.ndarray | None, cancel: Cancel | None, tiling: Tiling | None
) -> np.ndarray:
    """Return the latents that the denoiser sees, float32 [1, channels, h, w], of pixels [1, 3, height, width].

    `drawn` is the noise that draws them from the encoder's posterior; None takes the posterior's mean.
    """
    content = components.bundle.manifest
    spec = content.latents
    if VAE_ENCODER not in content.components:  # the latents are pixels
        return latent_space.from_encoder(pixels, spec)
    tiles = make_tiles(pixels.shape[-2] // spec.factor, pixels.shape[-1] // spec.factor, tiling)
    parts = []
    for tile in tiles:
        made = components.run(VAE_ENCODER, cancel, pixels=tile.cut(pixels, spec.factor))
        mean = made["latents"].astype(np.float32)
        parts.append(np.concatenate([mean, made[LOGVAR].astype(np.float32)], 1) if drawn is not None else mean)
    found = blend(parts, tiles, tiling)
    if drawn is None:
        return latent_space.from_encoder(found, spec)
    mean, spread = np.split(found, 2, 1)
    return latent_space.from_encoder(mean + np.exp(0.5 * spread.clip(*SPREAD)) * drawn, spec)
