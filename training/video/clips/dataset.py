"""The emoji clips as training tensors, drawn balanced. They loop, so that any length works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import clips
from ...loop.device import training_device


class Clips:
    """All clips of some splits, with their probabilities in balanced sampling.

    A clip's weight is 1 / sqrt(clips of its key), so that skin tones do not drown the rest.
    """

    def __init__(self, folder: Path, splits: tuple[str, ...] = ("train",)) -> None:
        self.folder, self.device = folder, training_device()
        self.rows = [clip for clip in clips.load(folder) if clip.split in splits]
        of_key = Counter(clip.key for clip in self.rows)
        weights = torch.tensor([of_key[clip.key] ** -0.5 for clip in self.rows], dtype=torch.float64)
        self.weights = weights / weights.sum()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` indices of clips, with replacement."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def take(self, index: int, start: int, count: int) -> Tensor:
        """Return `count` frames of a clip from `start` on, uint8 (count, 128, 128, 3). The clip loops."""
        clip = self.rows[index]
        parts, begin, left = [], start % clip.frames, count
        while left:
            stop = min(begin + left, clip.frames)
            parts.append(clips.read(self.folder, clip, begin, stop))
            begin, left = 0, left - (stop - begin)
        return torch.from_numpy(np.concatenate(parts))


def sheet(videos: Iterable[Sequence[Tensor]]) -> Tensor:
    """Return a picture in [0, 1] with each fourth frame of videos (3, F, H, W) in [-1, 1], a row for each video."""
    rows = [torch.cat(list(video[:, ::4].transpose(0, 1)), -1) for group in videos for video in group]
    return (torch.cat(rows, -2) / 2 + 0.5).clamp(0, 1)


def pixels(frames: Tensor) -> Tensor:
    """Return uint8 frames (…, F, H, W, 3) as float32 (…, 3, F, H, W) in [-1, 1]."""
    return frames.movedim(-1, -4).float() / 127.5 - 1


def scaled(video: Tensor, factor: int) -> Tensor:
    """Return video (B, 3, F, H, W) with sides divided by `factor`. Each pixel is the mean of its area."""
    return F.avg_pool3d(video, (1, factor, factor)) if factor > 1 else video
