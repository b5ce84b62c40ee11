"""The windows of clips: spread evenly over each clip, or drawn and varied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import variation
from .dataset import Clips, pixels
from .variation import Variation


@dataclass(frozen=True)
class Places:
    """N windows of clips."""

    clip: Tensor  # (N,) index of each clip
    start: Tensor  # (N,) its first frame
    weights: Tensor  # (N,) probability of each, float64
    variations: tuple[Variation, ...]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.clip)

    def videos(self, clips: Clips, chosen: Tensor, frames: int) -> Tensor:
        """Return the chosen windows of `frames` frames, float32 (B, 3, frames, 128, 128) in [-1, 1]."""
        taken = []
        for i in chosen.tolist():
            window = clips.take(int(self.clip[i]), int(self.start[i]), frames)
            taken.append(variation.apply(self.variations[i], window))
        return pixels(torch.stack(taken).to(clips.device))

    def images(self, clips: Clips, chosen: Tensor, frames: int) -> Tensor:
        """Return the first frames of what `videos` returns, (B, 3, 1, 128, 128)."""
        taken = []
        for i in chosen.tolist():
            first = int(self.start[i]) + (frames - 1 if self.variations[i].backwards else 0)
            taken.append(variation.apply(self.variations[i], clips.take(int(self.clip[i]), first, 1)))
        return pixels(torch.stack(taken).to(clips.device))

    def names(self, clips: Clips, chosen: Tensor) -> list[str]:
        """Return the texts of the chosen windows."""
        return [variation.caption(self.variations[i], clips.rows[int(self.clip[i])].name) for i in chosen.tolist()]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` indices of windows, clips balanced, with replacement."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def captions(self, clips: Clips, chosen: Tensor, dropout: float, generator: torch.Generator) -> list[str]:
        """Return the texts of the chosen windows; an empty one with probability `dropout`, for guidance."""
        dropped = (torch.rand(len(chosen), generator=generator) < dropout).tolist()
        return ["" if drop else name for name, drop in zip(self.names(clips, chosen), dropped, strict=True)]


def places(clips: Clips, each: int, varied: bool = False) -> Places:
    """Return `each` windows of every clip, spread evenly. `varied`: the same number, drawn balanced and varied.

    The same clips and `each` always give the same windows.
    """
    lengths = torch.tensor([row.frames for row in clips.rows])
    if not varied:
        clip = torch.arange(len(clips.rows)).repeat_interleave(each)
        start = torch.arange(each).repeat(len(clips.rows)) * lengths[clip] // each
        return Places(clip, start, clips.weights[clip], (Variation(),) * len(clip))
    generator = torch.Generator().manual_seed(0)
    clip = clips.draw(each * len(clips.rows), generator)
    start = (torch.rand(len(clip), generator=generator) * lengths[clip]).long()
    weights = torch.ones(len(clip), dtype=torch.float64)
    return Places(clip, start, weights, tuple(variation.draw(generator) for _ in clip))
