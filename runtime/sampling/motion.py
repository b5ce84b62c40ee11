"""SwiftI2V's Stage I: a short clip at low resolution, all its latent frames at once, from an image and a prompt.

The conventions are those of Wan 2.2's image-to-video pipeline. The network sees the noisy latents, a mask of the given
frames, and the latents of the image followed by grey frames. One or two experts share the noise levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ...errors import UsageError
from ..bundle.manifest import Sampler
from ..bundle.segments import COMPRESSION
from .recurrence import Schedule, sample
from .schedule import custom_schedule

Velocity = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""velocity(step, latents [1, in channels, frames, height, width], timestep [1]) returns float32 [1, channels, ...]."""

BOUNDARY = 0.9  # share of the training timesteps: the first expert works from here up, the second below


def image_mask(frames: int, height: int, width: int) -> np.ndarray:
    """Return the mask of given video frames, float32 [4, frames, height, width]: 1 for the first latent frame."""
    mask = np.zeros((COMPRESSION, frames, height, width), np.float32)
    mask[:, 0] = 1
    return mask


def expert_of(timestep: float, experts: int, train_timesteps: int, boundary: float = BOUNDARY) -> int:
    """Return which of one or two experts works at `timestep`, in [0, train_timesteps]."""
    if experts not in (1, 2):
        raise UsageError(f"a video needs one or two experts, got {experts}. Export one or two transformers.")
    return 0 if experts == 1 or timestep >= boundary * train_timesteps else 1


def schedule(spec: Sampler) -> Schedule:
    """Return the schedule of a video's sampler: a student's own sigmas, or evenly spaced ones like Wan's."""
    levels = spec.sigmas or tuple(1 - i / spec.steps for i in range(spec.steps))
    return custom_schedule(levels, spec.shift, spec.train_timesteps)


def experts_of(spec: Sampler, experts: int) -> list[int]:
    """Return which of one or two experts works at each step of Stage I's sampler."""
    return [expert_of(float(t), experts, spec.train_timesteps) for t in schedule(spec).timesteps]


def beside(image: np.ndarray) -> np.ndarray:
    """Return the channels after the noisy latents: the mask, then the latents of the image and the grey frames."""
    return np.concatenate([image_mask(*image.shape[1:]), image], 0)


def generate(velocity: Velocity, noise: np.ndarray, image: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Return the clip's latents, float32 [channels, frames, height, width], in the shape of `noise`.

    `image` has the same shape: the latents of the image followed by grey frames.
    """
    seen, steps = beside(image), itertools.count()

    def one(latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        shown = np.concatenate([latents, seen], 0)[None]
        return velocity(next(steps), shown, np.array([timestep], np.float32))[0]

    return sample(one, noise, schedule)
