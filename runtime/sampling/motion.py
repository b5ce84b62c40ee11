"""Stage I of a video: all latent frames of a window at once, from an image and a prompt.

The conventions are those of Wan 2.2's two image-to-video models. With `generate` the network sees the noisy latents, a
mask of the given frames, and the latents of the image followed by grey frames; one or two experts share the noise
levels. With `generate_after` the image's latent frame stands in place of the first noisy one, at timestep 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ...errors import UsageError
from ..bundle.manifest import Sampler
from ..bundle.segments import COMPRESSION
from .recurrence import Schedule, sample
from .schedule import RENOISED, custom_schedule, default_schedule, renoised

Velocity = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""velocity(step, latents [1, in channels, frames, height, width], times) returns float32 [1, channels, frames, ...].
`times` is float32 [1], or [1, frames] for `generate_after`."""

Fresh = Callable[[int], np.ndarray]
"""fresh(step) returns the noise of a step, in the shape of the latents, for a schedule that takes any."""

BOUNDARY = 0.9  # share of the training timesteps: the first expert works from here up, the second below


def image_mask(frames: int, height: int, width: int, last: bool = False) -> np.ndarray:
    """Return the mask of given video frames, float32 [4, frames, height, width]: 1 for the first latent frame.

    With `last` the last video frame is given too: it is the last of the four in its latent frame.
    """
    mask = np.zeros((COMPRESSION, frames, height, width), np.float32)
    mask[:, 0] = 1
    if last:
        mask[-1, -1] = 1
    return mask


def expert_of(timestep: float, experts: int, train_timesteps: int, boundary: float = BOUNDARY) -> int:
    """Return which of one or two experts works at `timestep`, in [0, train_timesteps]."""
    if experts not in (1, 2):
        raise UsageError(f"a video needs one or two experts, got {experts}. Export one or two transformers.")
    return 0 if experts == 1 or timestep >= boundary * train_timesteps else 1


def schedule(spec: Sampler) -> Schedule:
    """Return the schedule of a video's sampler: a student's own sigmas, or the levels of `spec.grid`.

    - "": evenly spaced, 1 - i / steps, as SwiftI2V's bundles have them.
    - "diffusers": those of FlowMatchEulerDiscreteScheduler, shifted twice.
    - "unipc": those of UniPCMultistepScheduler with flow sigmas, which end a training step above 0.
    """
    if not spec.sigmas and spec.grid == "diffusers":
        found = default_schedule(spec.steps, spec.shift, spec.train_timesteps)
    else:
        lowest = 1 / spec.train_timesteps if spec.grid == "unipc" else 0.0
        levels = spec.sigmas or tuple(1 - i * (1 - lowest) / spec.steps for i in range(spec.steps))
        found = custom_schedule(levels, spec.shift, spec.train_timesteps)
    return renoised(found) if spec.kind == RENOISED else found


def experts_of(spec: Sampler, experts: int, boundary: float = BOUNDARY) -> list[int]:
    """Return which of one or two experts works at each step of Stage I's sampler."""
    return [expert_of(float(t), experts, spec.train_timesteps, boundary) for t in schedule(spec).timesteps]


def beside(image: np.ndarray, last: bool = False) -> np.ndarray:
    """Return the channels after the noisy latents: the mask, then the latents of the given and the grey frames."""
    _, frames, height, width = image.shape
    return np.concatenate([image_mask(frames, height, width, last), image], 0)


def generate(
    velocity: Velocity, noise: np.ndarray, image: np.ndarray, schedule: Schedule, last: bool = False,
    fresh: Fresh | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the clip's latents, float32 [channels, frames, height, width], in the shape of `noise`.

    `image` has the same shape: the latents of the image followed by grey frames, and with `last` by the last image.
    """
    seen, steps = beside(image, last), itertools.count()

    def one(latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        shown = np.concatenate([latents, seen], 0)[None]
        return velocity(next(steps), shown, np.array([timestep], np.float32))[0]

    return sample(one, noise, schedule, noise=fresh)


def generate_after(
    velocity: Velocity, noise: np.ndarray, image: np.ndarray | None, schedule: Schedule, fresh: Fresh | None = None
) -> np.ndarray:
    """Return the clip's latents as `generate` does; `image`, float32 [channels, 1, height, width], begins them.

    Without an image all latent frames are drawn.
    """
    steps = itertools.count()

    def one(latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        return velocity(next(steps), begun(latents, image)[None], times(noise.shape[1], image, timestep))[0]

    return begun(sample(one, noise, schedule, noise=fresh), image)


def begun(latents: np.ndarray, image: np.ndarray | None) -> np.ndarray:
    """Return the latents with `image`, if any, as their first frame."""
    return latents if image is None else np.concatenate([image, latents[:, 1:]], 1)


def times(frames: int, image: np.ndarray | None, timestep: np.float32) -> np.ndarray:
    """Return the timestep of each latent frame, float32 [1, frames]: 0 for the image's."""
    found = np.full((1, frames), timestep, np.float32)
    found[:, : 0 if image is None else 1] = 0
    return found
