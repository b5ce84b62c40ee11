"""A causal autoencoder one latent frame a call: pixels to latents and back, in memory that no clip's length changes.

The graphs `first` and `next` of each half carry the convolutions' caches from call to call (export/families/wan.py).
Latents are normalised as (x - mean) / std a channel, as Wan's pipelines have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .components import Cancel, Components
from .segments import COMPRESSION


class Codec:
    """One AutoencoderKLWan of a bundle, by the name of its folder."""

    def __init__(
        self, components: Components, name: str, mean: tuple[float, ...], std: tuple[float, ...], cancel: Cancel | None
    ) -> None:
        self._components, self._name, self._cancel = components, name, cancel
        self._mean, self._std = (np.array(v, np.float32).reshape(-1, 1, 1, 1) for v in (mean, std))

    def encode(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield latents, float32 [channels, 1, h, w], of frames, float32 [height, width, 3] in [-1, 1].

        The first latent is of the first frame alone, each further one of four; frames at the end that make no whole
        latent are left over.
        """
        held: list[np.ndarray] = []
        caches: dict[str, np.ndarray] | None = None
        for frame in frames:
            held.append(frame)
            if caches is None or len(held) == COMPRESSION:
                pixels = np.stack(held).transpose(3, 0, 1, 2)[None]
                made, caches = self._call("encoder", "pixels", "latents", pixels, caches)
                yield (made[0].astype(np.float32) - self._mean) / self._std
                held = []

    def decode(self, latents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the frames, float32 [1 or 4, height, width, 3] in [-1, 1], of each latent [channels, 1, h, w]."""
        caches: dict[str, np.ndarray] | None = None
        for latent in latents:
            given = (latent * self._std + self._mean)[None]
            made, caches = self._call("decoder", "latents", "pixels", given, caches)
            yield made[0].astype(np.float32).transpose(1, 2, 3, 0)

    def release(self) -> None:
        """Free the four graphs."""
        self._components.release(
            *(f"{self._name}_{half}_{stage}" for half in ("encoder", "decoder") for stage in ("first", "next"))
        )

    def _call(
        self, half: str, taken: str, given: str, array: np.ndarray, caches: dict[str, np.ndarray] | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        stage = "first" if caches is None else "next"
        found = self._components.run(f"{self._name}_{half}_{stage}", self._cancel, **{taken: array}, **(caches or {}))
        made = found.pop(given)
        return made, {name.removeprefix("next_"): cache for name, cache in found.items()}
