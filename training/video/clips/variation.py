"""Variations of clips, so that a network learns to continue a picture instead of remembering it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

ORDERS = tuple(permutations(range(3)))
OTHER = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Variation:
    """The changes of one window of a clip, equal for all frames."""

    mirrored: bool = False
    backwards: bool = False
    colours: tuple[int, ...] = ORDERS[0]  # source channels of R, G and B
    zoom: float = 1.0
    turn: float = 0.0  # radians, clockwise
    right: float = 0.0  # in half widths
    down: float = 0.0  # in half heights


def draw(generator: torch.Generator) -> Variation:
    """Draw a variation: mirror half, recolour half, reverse a quarter, and move all a little."""
    mirrored, backwards, recoloured, zoom, turn, right, down = torch.rand(7, generator=generator).tolist()
    order = int(torch.randint(1, len(ORDERS), (), generator=generator))
    return Variation(
        mirrored < 0.5,
        backwards < 0.25,
        ORDERS[order if recoloured < 0.5 else 0],
        0.75 + 0.3 * zoom,
        math.radians(20 * turn - 10),
        0.1 * right - 0.05,
        0.1 * down - 0.05,
    )


def apply(variation: Variation, frames: Tensor) -> Tensor:
    """Apply the variation to frames (F, H, W, 3) uint8. White fills the border."""
    if variation == Variation():
        return frames
    if variation.mirrored:
        frames = frames.flip(2)
    if variation.backwards:
        frames = frames.flip(0)
    frames = frames[..., list(variation.colours)]
    cos, sin = math.cos(variation.turn) / variation.zoom, math.sin(variation.turn) / variation.zoom
    moved_to = torch.tensor([[cos, sin, -variation.right], [-sin, cos, -variation.down]]).expand(len(frames), -1, -1)
    ink = 255 - frames.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(moved_to, list(ink.shape), align_corners=False)
    moved = F.grid_sample(ink, grid, mode="bicubic", align_corners=False)
    return (255 - moved).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def caption(variation: Variation, text: str) -> str:
    """Return the varied clip's name. Mirroring exchanges left and right."""
    if not variation.mirrored:
        return text
    return re.sub(r"\b(left|right)\b", lambda found: OTHER[found[0]], text)
