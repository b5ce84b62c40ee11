"""Measures of a video that no single frame shows: motion, flicker, seams between segments, warping, closing of a loop.

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
    """Return the mean absolute difference of frames that follow one another: 0 for a still picture."""
    return (video[1:] - video[:-1]).abs().mean().item()


def flicker(video: Tensor) -> float:
    """Return the mean absolute distance of a frame to the mean of its neighbours: what goes and comes back."""
    return (video[1:-1] - (video[2:] + video[:-2]) / 2).abs().mean().item()


def loop_gap(video: Tensor) -> float:
    """Return how much more the last frame differs from the first than frames that follow one another do, on average.

    1 for a loop that closes as smoothly as it runs. Raises ZeroDivisionError for a still video.
    """
    return (video[-1] - video[0]).abs().mean().item() / dynamic_degree(video)


def detail_of_differences(video: Tensor) -> np.ndarray:
    """Return for each frame but the first the high-frequency part of its difference to the one before, (F - 1,)."""
    difference = video[1:] - video[:-1]
    smooth = F.avg_pool2d(difference, 3, stride=1, padding=1, count_include_pad=False)
    return (difference - smooth).abs().mean((1, 2, 3)).numpy()


@dataclass(frozen=True)
class Seams:
    """How much segment starts stand out: 1 for not at all."""

    ratio: float  # of the mean at segment starts to that at other starts of latent frames, the same phase of the codec
    chance: float  # share of random choices of as many starts with a ratio at least as high
    starts: int


def seams(video: Tensor, spec: SegmentSpec, draws: int = 2000, reach: int = 4) -> Seams:
    """Return how segment starts differ from the other starts of latent frames, one window of a video.

    Each difference counts relative to the median of those within `reach` frames, so that fast motion weighs no more
    than slow. The first latent frame behind the image counts as neither. Raises ValueError where a video is too short
    to have both kinds, or stands still.
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
    """Return the mean absolute error of each frame warped back onto the one before it along its optical flow.

    With `every` only one in as many pairs is looked at: flow takes longer than any other measure. The flow is that of
    `truth` where it is given (the same motion for every video that is compared), else the video's own: iterative
    Lucas-Kanade of scikit-image, on grey frames.
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
