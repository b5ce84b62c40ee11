"""Previews: what a picture will look like, while it is drawn, for next to no work.

A step gives noisy latents, so a preview shows the clean picture that the step expected (`Schedule.estimate`). A small
decoder of the bundle makes it, or else the bundle's linear map from latents to RGB, or else the decoder itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import UsageError
from ..bundle.families import PREVIEW, VAE_DECODER
from ..bundle.manifest import LinearMap
from ..bundle.reader import Bundle
from ..components import Components
from ..sampling import latents as latent_space
from ..sampling.recurrence import Moment
from .render import OnStep, decode

ROWS = 64  # of an enlarged picture that are computed at a time


class Previewing:
    """A model that shows pictures while it draws them; its class sets the attributes."""

    bundle: Bundle
    budget: int | None
    _components: Components
    _moment: Moment | None = None
    _counted = False  # whether the plan of the request that runs counts the small decoder

    def estimate(self) -> np.ndarray:
        """Return the clean picture that the step just done expected, as latents, float32 [1, channels, h, w].

        Call it inside `on_step`; elsewhere it raises UsageError. It costs no network call.
        """
        if (moment := self._moment) is None:
            raise UsageError(
                "no step has just been done, so there is nothing to show. Call it inside on_step, or give latents."
            )
        return moment.estimate()

    def preview(self, latents: np.ndarray | None = None, *, full_size: bool = False) -> np.ndarray | None:
        """Return small pictures of latents [n, channels, h, w], uint8 sRGB [n, height, width, 3].

        Without `latents` it shows `estimate()`: call it inside `on_step`. The first of these that is possible makes it:

        1. the bundle's small decoder, in the picture's size; with a budget, only if the plan counts it;
        2. the bundle's linear map, h x w pixels, which costs no network call;
        3. without a budget, the decoder, in the picture's size.

        It returns None if none is possible. `full_size` enlarges the map's picture to the size of the final one. Raises
        UsageError for a bundle of videos, and the errors of `Components.run`.
        """
        content = self.bundle.manifest
        if content.video is not None:
            raise UsageError(f"the bundle {content.name!r} draws videos, which have no previews. Show their frames.")
        given = self.estimate() if latents is None else latents
        if VAE_DECODER in content.components and self._may_decode_small(given):
            return latent_space.to_bytes(self._components.run(PREVIEW, None, latents=given)["pixels"])
        if VAE_DECODER in content.components and content.preview is not None:
            small = latent_space.to_bytes(mapped(content.preview, given))
            return enlarged(small, content.latents.factor) if full_size else small
        if VAE_DECODER in content.components and self.budget is not None:
            return None
        return decode(self._components, given, None, None)

    @property
    def shows_steps(self) -> bool:
        """Whether `preview` shows the steps of a request, also with the model's budget."""
        content = self.bundle.manifest
        return content.video is None and (
            self.budget is None or content.preview is not None or VAE_DECODER not in content.components
        )

    def _may_decode_small(self, latents: np.ndarray) -> bool:
        spec = self.bundle.manifest.components.get(PREVIEW)
        if spec is None or (spec.precision == "bf16" and not self._components.on_gpu):
            return False
        planned = self._counted and self._moment is not None and latents.shape == self._moment.after.shape
        return (self.budget is None or planned) and self._components.has(PREVIEW)

    def _noting(self, on_step: OnStep) -> Callable[[int, int, np.ndarray, Moment], None]:
        """Return a callback that runs `on_step` and keeps the moment for it."""

        def report(done: int, total: int, latents: np.ndarray, moment: Moment) -> None:
            self._moment = moment
            try:
                on_step(done, total, latents)
            finally:
                self._moment = None

        return report


def mapped(found: LinearMap, latents: np.ndarray) -> np.ndarray:
    """Return the RGB of latents [n, channels, h, w] by a linear map, float32 [n, 3, h, w], about -1 to 1."""
    factors, bias = np.array(found.factors, np.float32), np.array(found.bias, np.float32)
    return np.einsum("nchw,cr->nrhw", latents.astype(np.float32), factors) + bias[:, None, None]


def enlarged(pictures: np.ndarray, factor: int) -> np.ndarray:
    """Return pictures, uint8 [n, h, w, 3], larger by `factor`, with bilinear interpolation between pixels' centres."""
    count, height, width, _ = pictures.shape
    made = np.empty((count, height * factor, width * factor, 3), np.uint8)
    rows, columns = _weights(height, factor), _weights(width, factor)
    for picture, out in zip(pictures, made, strict=True):
        wide = np.einsum("vw,hwr->hvr", columns, picture.astype(np.float32))
        for top in range(0, len(out), ROWS):  # a whole picture of floats would take four times its bytes
            out[top : top + ROWS] = np.tensordot(rows[top : top + ROWS], wide, 1).round()
    return made


def _weights(size: int, factor: int) -> np.ndarray:
    """Return the matrix of linear interpolation from `size` to `size` * `factor` places, float32."""
    places = ((np.arange(size * factor) + 0.5) / factor - 0.5).clip(0, size - 1)
    return np.maximum(1 - abs(places[:, None] - np.arange(size)), 0).astype(np.float32)
