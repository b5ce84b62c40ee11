"""A causal autoencoder, one latent frame a call. Its memory does not grow with the clip's length.

The graphs `first` and `next` of each half pass the convolutions' caches from call to call (export/families/wan/). Each
channel of the latents is normalised as (x - mean) / std, as in Wan's pipelines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ...engines.base import Array
from ..bundle.segments import COMPRESSION
from ..components import Cancel, Components
from ..sampling.tiles import Tile, Tiling, blend, make_tiles


class StreamingAutoencoder:
    """One AutoencoderKLWan of a bundle; `name` is its folder. With `tiling` it works tile by tile."""

    def __init__(
        self, components: Components, name: str, mean: tuple[float, ...], std: tuple[float, ...], factor: int,
        tiling: Tiling | None, cancel: Cancel | None,
    ) -> None:  # fmt: skip
        self._components, self._name, self._cancel = components, name, cancel
        self._factor, self._tiling = factor, tiling
        self._mean, self._std = (np.array(v, np.float32).reshape(-1, 1, 1, 1) for v in (mean, std))

    def encode(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield latents, float32 [channels, 1, h, w], of frames, float32 [height, width, 3] in [-1, 1].

        The first latent holds only the first frame, each other latent four frames. Left-over frames at the end are
        dropped.
        """
        held: list[np.ndarray] = []
        half = _Half(self, "encoder", "pixels", "latents")
        for frame in frames:
            held.append(frame)
            if half.first or len(held) == COMPRESSION:
                made = half(np.stack(held).transpose(3, 0, 1, 2), self._factor, 1)
                yield (made - self._mean) / self._std
                held = []

    def decode(self, latents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the frames, float32 [1 or 4, height, width, 3] in [-1, 1], of each latent [channels, 1, h, w]."""
        half = _Half(self, "decoder", "latents", "pixels")
        for latent in latents:
            yield half(latent * self._std + self._mean, 1, self._factor).transpose(1, 2, 3, 0)

    def release(self) -> None:
        """Free the four graphs."""
        self._components.release(
            *(f"{self._name}_{half}_{stage}" for half in ("encoder", "decoder") for stage in ("first", "next"))
        )


class _Half:
    """One half of an autoencoder during a clip: it keeps the caches of each tile's last call."""

    def __init__(self, codec: StreamingAutoencoder, half: str, taken: str, given: str) -> None:
        self._codec, self._half, self._taken, self._given = codec, half, taken, given
        self._caches: dict[Tile, dict[str, Array]] = {}

    @property
    def first(self) -> bool:
        """Whether the next call is the first one."""
        return not self._caches

    def __call__(self, array: np.ndarray, seen: int, made: int) -> np.ndarray:
        """Run the half on `array` [channels, frames, ...]; returns float32.

        `seen` and `made` are the pixels per latent pixel of the input and of the output.
        """
        codec = self._codec
        tiles = make_tiles(array.shape[-2] // seen, array.shape[-1] // seen, codec._tiling)
        stage = "first" if self.first else "next"
        parts = []
        for tile in tiles:
            feeds = {self._taken: tile.cut(array, seen)[None], **self._caches.get(tile, {})}
            component = f"{codec._name}_{self._half}_{stage}"
            found = codec._components.run(component, codec._cancel, self._kept(component, len(tiles)), **feeds)
            parts.append(found.pop(self._given)[0].astype(np.float32))
            self._caches[tile] = {name.removeprefix("next_"): cache for name, cache in found.items()}
        return blend(parts, tiles, codec._tiling, made)

    def _kept(self, component: str, tiles: int) -> tuple[str, ...]:
        """Return the outputs that stay on the device: on a GPU the caches, if there is only one tile."""
        components = self._codec._components
        if not components.stays_on_device(component) or tiles > 1:
            return ()
        outputs = components.bundle.manifest.components[component].outputs
        return tuple(spec.name for spec in outputs if spec.name != self._given)
