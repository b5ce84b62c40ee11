"""Conditional Segment-wise Generation (SwiftI2V): the latent frames of a clip of any length, a few at a time.

A segment is denoised from its own noise down to the last level before the next one begins, in a window with the image
latent and its neighbours, which stay clean. What it made takes the motion reference's place for the segments after it.
Nothing here grows with the length of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..bundle.segments import Segment, SegmentSpec, count_segments, segment
from .schedule import Schedule, sample_euler

Velocity = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""velocity(latents [1, 2 channels, frames, height, width], timesteps [1, frames], positions [1, frames]) of a window:
float32, float32 and int64, to float32 [1, channels, frames, height, width]. The second half of the channels is the
reference."""

Denoise = Callable[[Segment, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""denoise(segment, context, reference, noise) to the segment's targets; `denoise` without its first two arguments."""

Frames = Callable[[range], np.ndarray]
"""frames(range of latent frames) gives them, float32 [channels, frames, height, width]."""


def generate(
    denoise: Denoise, image: np.ndarray, reference: Frames, noise: Frames, latent: int, spec: SegmentSpec,
    begin: int = 0, before: np.ndarray | None = None,
) -> Iterator[tuple[Segment, np.ndarray]]:  # fmt: skip
    """Yield each segment of a clip of `latent` latent frames with what it made, float32 [channels, M, height, width].

    `image` is the image latent, float32 [channels, 1, height, width]. `reference` is asked for each run of frames once
    or, where neighbours after the targets are used, twice; both runs rise. `noise` has no order. To go on at segment
    `begin`, give in `before` the frames that were made last, as many as its window takes or more.
    """
    made = np.zeros((image.shape[0], 0, *image.shape[2:]), np.float32) if before is None else before
    for index in range(begin, count_segments(latent, spec)):
        part = segment(index, latent, spec)
        context = np.concatenate([image, made[:, made.shape[1] - len(part.before) :]], 1)
        found = denoise(part, context, reference(part.reference), noise(part.targets))
        yield part, found
        made = np.concatenate([made, found], 1)[:, -max(spec.before, 1) :]


def denoise(
    velocity: Velocity, schedule: Schedule, part: Segment, context: np.ndarray, reference: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Return the targets of one segment, float32 [channels, M, height, width].

    `context` holds the clean frames before the targets, `reference` the motion reference of the targets and of the
    neighbours after them. A clean frame is its own reference.
    """
    positions = np.array([part.frames], np.int64)

    def one(latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        seen = window(part, context, reference, latents)
        return velocity(seen, timesteps(part, timestep), positions)[0][:, part.noisy]

    return sample_euler(one, noise, schedule)


def window(part: Segment, context: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return what the network sees of a segment: [1, 2 channels, frames, height, width], the reference behind."""
    shown = np.concatenate([context, targets, reference[:, len(part.targets) :]], 1)
    return np.concatenate([shown, np.concatenate([context, reference], 1)], 0)[None]


def timesteps(part: Segment, timestep: np.float32) -> np.ndarray:
    """Return the timestep of every frame of a segment's window, float32 [1, frames]: 0 for the clean ones."""
    found = np.zeros((1, len(part.frames)), np.float32)
    found[:, part.noisy] = timestep
    return found
