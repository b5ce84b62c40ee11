"""Cut a plane into overlapping tiles, and blend the results into one plane.

Linear ramps mix the results in an overlap, so no edge shows. Near a tile's edge a network's result still differs from
its result for the whole plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UsageError


@dataclass(frozen=True)
class Tiling:
    """Tiles of `side` rows and `width` columns (None: `side`) with `overlap` between neighbours, in latent pixels."""

    side: int
    overlap: int
    width: int | None = None

    @property
    def columns(self) -> int:
        """Return the columns of a tile."""
        return self.side if self.width is None else self.width

    def __post_init__(self) -> None:
        """Raise UsageError for tiles that cannot cover a plane."""
        if not 0 <= self.overlap < min(self.side, self.columns):
            raise UsageError(
                f"a tile's overlap must be 0 or more and less than its sides, got {self.overlap} for "
                f"{self.side} x {self.columns} latent pixels. Choose a smaller overlap or a larger side."
            )


@dataclass(frozen=True)
class Tile:
    """One tile: its rows and its columns, in latent pixels."""

    rows: range
    columns: range

    def cut(self, array: np.ndarray, factor: int = 1) -> np.ndarray:
        """Return the tile's part of an array whose last two axes are `factor` times the latents'."""
        rows, columns = (slice(factor * r.start, factor * r.stop) for r in (self.rows, self.columns))
        return array[..., rows, columns]


def make_tiles(height: int, width: int, tiling: Tiling | None) -> list[Tile]:
    """Return tiles that cover `height` x `width`, row by row; a single one if `tiling` is None or the plane fits."""
    if tiling is None:
        return [Tile(range(height), range(width))]
    across = _spans(width, tiling.columns, tiling.overlap)
    return [Tile(rows, columns) for rows in _spans(height, tiling.side, tiling.overlap) for columns in across]


def efficient_tilings(height: int, width: int, overlap: int, least: int) -> list[Tiling]:
    """Return the Pareto front of tilings for a plane of `height` x `width` latent pixels.

    A tiling is on the front if no other has both a smaller tile and fewer pixels in all tiles together. Sides are
    multiples of 4 from `least` up, or the plane's own. A side of less than two overlaps limits the overlap to half of
    that side.
    """
    overlap = min(overlap, height // 2, width // 2)
    counts = {
        side: {**{tile: len(_spans(side, tile, overlap)) for tile in range(least, side, 4)}, side: 1}
        for side in {height, width}
    }
    found = [
        (rows * columns, rows * columns * down * across, Tiling(rows, overlap, columns))
        for rows, down in counts[height].items()
        for columns, across in counts[width].items()
        if down * across > 1
    ]
    kept, least_total = [], math.inf
    for _, total, tiling in sorted(found, key=lambda one: one[:2]):  # the smaller tile first
        if total < least_total:
            kept.append(tiling)
            least_total = total
    return kept


def blend(parts: Sequence[np.ndarray], tiles: Sequence[Tile], tiling: Tiling | None, factor: int = 1) -> np.ndarray:
    """Return the plane of `parts`, float32, one part per tile and `factor` pixels per latent pixel.

    A single part comes back unchanged.
    """
    if tiling is None or len(parts) == 1:
        return parts[0]
    height, width = (factor * max(getattr(tile, side).stop for tile in tiles) for side in ("rows", "columns"))
    total = np.zeros((*parts[0].shape[:-2], height, width), np.float32)
    weight = np.zeros((height, width), np.float32)
    for part, tile in zip(parts, tiles, strict=True):
        here = np.outer(
            _ramp(tile.rows, height // factor, tiling, factor), _ramp(tile.columns, width // factor, tiling, factor)
        )
        tile.cut(total, factor)[...] += here * part
        tile.cut(weight, factor)[...] += here
    return total / weight


def apply(
    plane: np.ndarray, tiling: Tiling | None, factor: int, call: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Call `call` on each tile of a plane [..., height, width]; return the blended result, `factor` times as large."""
    tiles = make_tiles(plane.shape[-2], plane.shape[-1], tiling)
    return blend([call(tile.cut(plane)) for tile in tiles], tiles, tiling, factor)


def _spans(length: int, side: int, overlap: int) -> list[range]:
    """Return ranges of at most `side` that cover `length`; the last one stops at `length`."""
    starts = list(range(0, max(length - overlap, 1), side - overlap))
    return [range(start, start + min(side, length)) for start in (min(s, max(length - side, 0)) for s in starts)]


def _ramp(span: range, length: int, tiling: Tiling, factor: int) -> np.ndarray:
    """Return the weights along one side of a tile; they ramp over the overlap with each neighbour."""
    weights = np.ones(factor * len(span), np.float32)
    over = factor * tiling.overlap
    rise = (np.arange(over, dtype=np.float32) + 1) / np.float32(over + 1)
    if over and span.start > 0:
        weights[:over] = rise
    if over and span.stop < length:
        weights[-over:] = rise[::-1]
    return weights
