"""Conditional Segment-wise Generation (SwiftI2V): the latent frames of a clip of any length, a few at a time.

Each segment is denoised completely before the next one begins. Its window also holds clean frames: the image latent and
the segment's neighbours. The finished frames replace the motion reference for the next segments. Memory does not grow
with the length of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..bundle.segments import Segment, SegmentSpec, count_segments, segment
from .recurrence import Schedule, sample

Velocity = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""velocity(latents [1, 2 channels, frames, height, width], timesteps [1, frames], positions [1, frames]) of a window.
They are float32, float32 and int64; the result is float32 [1, channels, frames, height, width]. The second half of the
channels is the reference."""

Denoise = Callable[[Segment, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""denoise(segment, context, reference, noise) returns the segment's targets, like `denoise` below."""

Fresh = Callable[[int, range], np.ndarray]
"""fresh(step, range of latent frames) returns the noise of a step for them, for a schedule that takes any."""

Frames = Callable[[range], np.ndarray]
"""frames(range of latent frames) returns them, float32 [channels, frames, height, width]."""


def generate(
    denoise: Denoise, image: np.ndarray, reference: Frames, noise: Frames, latent: int, spec: SegmentSpec,
    begin: int = 0, before: np.ndarray | None = None,
) -> Iterator[tuple[Segment, np.ndarray]]:  # fmt: skip
    """Yield each segment of a clip of `latent` latent frames with its targets, float32 [channels, M, height, width].

    `image` is the image latent, float32 [channels, 1, height, width]. `reference` is called with rising ranges; ranges
    overlap if the window has neighbours after the targets. `noise` may be called in any order. To resume at segment
    `begin`, pass the latest finished frames as `before`, at least as many as the window takes.
    """
    made = np.zeros((image.shape[0], 0, *image.shape[2:]), np.float32) if before is None else before
    for index in range(begin, count_segments(latent, spec)):
        part = segment(index, latent, spec)
        context = np.concatenate([image, made[:, made.shape[1] - len(part.before) :]], 1)
        found = denoise(part, context, reference(part.reference), noise(part.targets))
        yield part, found
        made = np.concatenate([made, found], 1)[:, -max(spec.before, 1) :]


def denoise(
    velocity: Velocity, schedule: Schedule, part: Segment, context: np.ndarray, reference: np.ndarray,
    noise: np.ndarray, fresh: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the targets of one segment, float32 [channels, M, height, width].

    `context` holds the clean frames before the targets. `reference` is the motion reference of the targets and of the
    neighbours after them. A clean frame is its own reference. `fresh(step)` is the noise of a step, in the shape of
    `noise`, for a schedule that takes any.
    """
    positions = np.array([part.frames], np.int64)

    def one(latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        seen = window(part, context, reference, latents)
        return velocity(seen, timesteps(part, timestep), positions)[0][:, part.noisy]

    return sample(one, noise, schedule, noise=fresh)


def window(part: Segment, context: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the network's input for a segment, [1, 2 channels, frames, height, width]; the reference comes last."""
    shown = np.concatenate([context, targets, reference[:, len(part.targets) :]], 1)
    return np.concatenate([shown, np.concatenate([context, reference], 1)], 0)[None]


def timesteps(part: Segment, timestep: np.float32) -> np.ndarray:
    """Return the timestep of every frame of a segment's window, float32 [1, frames]; 0 for clean frames."""
    found = np.zeros((1, len(part.frames)), np.float32)
    found[:, part.noisy] = timestep
    return found
