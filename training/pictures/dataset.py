"""The emoji pictures as training tensors: composed on white, drawn class-balanced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from ..data import emoji
from ..loop.device import training_device


class Pictures:
    """All pictures of one split, with their probabilities in class-balanced sampling.

    People and their skin tones are over half of the set. Balance keeps them from drowning the rest: a picture's weight
    is 1 / sqrt(pictures of its key and style), and each emoji group's total is damped to its square root.
    """

    def __init__(self, folder: Path, splits: tuple[str, ...] = ("train",)) -> None:
        self.device = training_device()
        self.table = folder / "emoji.json"
        rows, rgba = emoji.load(folder)
        chosen = [i for i, row in enumerate(rows) if row.split in splits]
        self.rows = [rows[i] for i in chosen]
        self.rgba = torch.from_numpy(rgba[chosen]).to(self.device)
        self.weights = torch.from_numpy(balance(self.rows))

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return `count` indices (int64, on the processor), class-balanced, with replacement."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def on_white(self, indices: torch.Tensor) -> torch.Tensor:
        """Return pictures (B, 3, 128, 128) float32 in [-1, 1], composed on white, on the training device."""
        return on_white(self.rgba[indices.to(self.device)])


def on_white(rgba: torch.Tensor) -> torch.Tensor:
    """Compose straight-alpha `rgba` (B, H, W, 4) uint8 on white: (B, 3, H, W) float32 in [-1, 1]."""
    pixels = rgba.permute(0, 3, 1, 2).float() / 255
    return (pixels[:, :3] * pixels[:, 3:] + (1 - pixels[:, 3:])) * 2 - 1


def balance(rows: list[emoji.Row]) -> np.ndarray:
    """Return the sampling weight of each row (float64, sums to 1)."""
    of_key = Counter((row.key, row.style) for row in rows)
    weights = np.array([1 / np.sqrt(of_key[row.key, row.style]) for row in rows])
    groups = np.array([row.group for row in rows])
    for group in np.unique(groups):
        weights[groups == group] /= np.sqrt(weights[groups == group].sum())
    return weights / weights.sum()
