"""Measures across the frames of a video: motion, flicker, seams between segments, warping, closing of a loop.

Videos are float32 (F, 3, H, W) in [-1, 1]. Every function is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.bundle.segments import SegmentSpec, count_segments, frames_of, segment


def dynamic_degree(video: Tensor) -> float:
    """Return the mean absolute difference of consecutive frames: 0 for a still picture."""
    return (video[1:] - video[:-1]).abs().mean().item()


def flicker(video: Tensor) -> float:
    """Return the mean absolute distance of a frame to the mean of its neighbours: short-lived changes."""
    return (video[1:-1] - (video[2:] + video[:-2]) / 2).abs().mean().item()


def loop_gap(video: Tensor) -> float:
    """Return the difference between last and first frame, relative to the mean difference of consecutive frames.

    A value of 1 means that the loop closes smoothly. Raises ZeroDivisionError for a still video.
    """
    return (video[-1] - video[0]).abs().mean().item() / dynamic_degree(video)


def detail_of_differences(video: Tensor) -> np.ndarray:
    """Return the high-frequency part (F - 1,) of each frame's difference to the frame before."""
    difference = video[1:] - video[:-1]
    smooth = F.avg_pool2d(difference, 3, stride=1, padding=1, count_include_pad=False)
    return (difference - smooth).abs().mean((1, 2, 3)).numpy()


@dataclass(frozen=True)
class Seams:
    """How much segment starts stand out: 1 means not at all."""

    ratio: float  # mean at segment starts / mean at other starts of latent frames (the codec's same phase)
    chance: float  # share of random choices of starts with a ratio at least as high
    starts: int


def seams(video: Tensor, spec: SegmentSpec, draws: int = 2000, reach: int = 4) -> Seams:
    """Compare segment starts with the other starts of latent frames, in one window of a video.

    Each difference counts relative to the median within `reach` frames, so that fast motion weighs no more than slow
    motion. The first latent frame behind the image counts as neither. Raises ValueError if a video is still, or too
    short to have both kinds.
    """
    latent = 1 + (len(video) - 1) // 4
    found = detail_of_differences(video)
    local = np.array([np.median(found[max(i - reach, 0) : i + reach + 1]) for i in range(len(found))])
    relative = found / np.maximum(local, 1e-12)
    first_frames = {k: frames_of(range(k, k + 1)).start for k in range(2, latent)}
    begins = [segment(i, latent, spec).targets.start for i in range(1, count_segments(latent, spec))]
    values = np.array([relative[frame - 1] for frame in first_frames.values()])
    chosen = np.array([k in begins for k in first_frames])
    if not 0 < chosen.sum() < len(chosen):
        raise ValueError(f"{len(video)} frames have no segment start beside another start of a latent frame")
    if not values[~chosen].any():
        raise ValueError("a video that stands still has no seams")

    def ratio(mask: np.ndarray) -> float:
        return float(values[mask].mean() / values[~mask].mean())

    random = np.random.default_rng(0)
    shuffled = [ratio(random.permutation(chosen)) for _ in range(draws)]
    return Seams(ratio(chosen), float(np.mean(np.array(shuffled) >= ratio(chosen) - 1e-9)), int(chosen.sum()))


def warp_error(video: Tensor, truth: Tensor | None = None, every: int = 1) -> float:
    """Return the mean absolute error of frames, each warped along its optical flow onto the frame before.

    `every` = n measures only each n-th pair, because the flow takes longer than any other measure. The flow comes from
    `truth` if given (the same motion for every compared video), else from the video: scikit-image's iterative
    Lucas-Kanade, on grey frames.
    """
    from skimage.registration import optical_flow_ilk

    grey = (video if truth is None else truth).mean(1).numpy()
    height, width = grey.shape[1:]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    errors = []
    for i in range(0, len(video) - 1, every):
        down, right = optical_flow_ilk(grey[i], grey[i + 1])
        place = np.stack([(columns + right) / (width - 1) * 2 - 1, (rows + down) / (height - 1) * 2 - 1], -1)
        grid = torch.from_numpy(place.astype(np.float32))[None]
        back = F.grid_sample(video[i + 1][None], grid, padding_mode="border", align_corners=True)
        errors.append((back[0] - video[i]).abs().mean().item())
    return float(np.mean(errors))


def by_frame(distances: Sequence[float]) -> tuple[float, float]:
    """Return the mean over frames and the drift: the slope of a straight line through them, per frame."""
    slope = np.polyfit(np.arange(len(distances)), np.asarray(distances, np.float64), 1)[0]
    return float(np.mean(distances)), float(slope)
