"""A plane in overlapping tiles: where they lie, and how what was made of each becomes one plane again.

Where tiles overlap their results are mixed by linear ramps, so that no edge shows; what a network makes near a tile's
edge still differs from what it makes of the whole plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError


@dataclass(frozen=True)
class Tiling:
    """Tiles of `side` x `side` with `overlap` between neighbours, both in latent pixels."""

    side: int
    overlap: int

    def __post_init__(self) -> None:
        """Raise UsageError for tiles that cannot cover a plane."""
        if not 0 <= self.overlap < self.side:
            raise UsageError(
                f"tiles of {self.side} latent pixels with an overlap of {self.overlap} cannot be laid. Choose an "
                "overlap of 0 or more, below the side."
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


def lay(height: int, width: int, tiling: Tiling | None) -> list[Tile]:
    """Return tiles that cover `height` x `width`, row by row; one for no tiling, and where the plane fits into one."""
    if tiling is None:
        return [Tile(range(height), range(width))]
    return [Tile(rows, columns) for rows in _spans(height, tiling) for columns in _spans(width, tiling)]


def joined(parts: Sequence[np.ndarray], laid: Sequence[Tile], tiling: Tiling | None, factor: int = 1) -> np.ndarray:
    """Return the plane that `parts` make, each its tile's in `factor` pixels for a latent one, float32.

    With a single tile it is that part as it is.
    """
    if tiling is None or len(parts) == 1:
        return parts[0]
    height, width = (factor * max(getattr(tile, side).stop for tile in laid) for side in ("rows", "columns"))
    total = np.zeros((*parts[0].shape[:-2], height, width), np.float32)
    weight = np.zeros((height, width), np.float32)
    for part, tile in zip(parts, laid, strict=True):
        here = np.outer(
            _ramp(tile.rows, height // factor, tiling, factor), _ramp(tile.columns, width // factor, tiling, factor)
        )
        tile.cut(total, factor)[...] += here * part
        tile.cut(weight, factor)[...] += here
    return total / weight


def _spans(length: int, tiling: Tiling) -> list[range]:
    """Return runs of at most the tile's side that cover `length`; the last one ends at its end."""
    starts = list(range(0, max(length - tiling.overlap, 1), tiling.side - tiling.overlap))
    return [
        range(start, start + min(tiling.side, length))
        for start in (min(s, max(length - tiling.side, 0)) for s in starts)
    ]


def _ramp(span: range, length: int, tiling: Tiling, factor: int) -> np.ndarray:
    """Return the weights along one side of a tile, rising over the overlap where there is a neighbour."""
    weights = np.ones(factor * len(span), np.float32)
    over = factor * tiling.overlap
    rise = (np.arange(over, dtype=np.float32) + 1) / np.float32(over + 1)
    if over and span.start > 0:
        weights[:over] = rise
    if over and span.stop < length:
        weights[-over:] = rise[::-1]
    return weights
