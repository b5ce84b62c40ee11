"""Windows of Stage II for a batch, and generation of whole clips: `runtime/sampling/csg.py` in PyTorch.

Training and evaluation take many clips at once, and omit parts of the window for ablations. The runtime takes one clip.
`runtime/bundle/segments.py` gives both the frames of a window, and a test compares them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...runtime.bundle.segments import Segment, SegmentSpec, count_segments, segment
from ...runtime.sampling.schedule import Schedule

Velocity = Callable[["Window"], Tensor]
"""The velocity (B, C, frames, h, w) of every frame of a window."""


@dataclass(frozen=True)
class Window:
    """The input of Stage II's transformer for one segment of B clips."""

    latents: Tensor  # (B, 2 C, frames, h, w), the reference behind the latents
    timesteps: Tensor  # (B, frames), 0 for clean frames
    positions: Tensor  # (B, frames) int64
    noisy: slice  # the targets among the frames


def window(part: Segment, clean: Tensor, noisy: Tensor, reference: Tensor, sigma: Tensor, image: bool = True) -> Window:
    """Return the window of a segment.

    `clean` (B, C, T, h, w) holds the image latent and the frames before the segment. `reference`, of that shape, is the
    motion reference. `noisy` (B, C, M, h, w) are the targets at level `sigma` (B,). `image` = False omits the image
    latent, for an ablation.
    """
    frames, targets = list(part.frames), part.noisy
    after = reference[:, :, list(part.after)]
    context = clean[:, :, frames[: targets.start]]
    latents = torch.cat([context, noisy, after], 2)
    beside = torch.cat([context, reference[:, :, list(part.reference)]], 2)
    timesteps = sigma.new_zeros(len(sigma), len(frames))
    timesteps[:, targets] = 1000 * sigma[:, None]
    positions = torch.tensor(frames, device=sigma.device).expand(len(sigma), -1)
    first = 0 if image else 1
    return Window(
        torch.cat([latents, beside], 1)[:, :, first:],
        timesteps[:, first:],
        positions[:, first:],
        slice(targets.start - first, targets.stop - first),
    )


@torch.no_grad()
def generate(
    velocity: Velocity, image: Tensor, reference: Tensor, noise: Tensor, spec: SegmentSpec, schedule: Schedule,
    with_image: bool = True,
) -> Tensor:  # fmt: skip
    """Generate the latents (B, C, T, h, w) of clips, segment by segment, from the image latent (B, C, 1, h, w)."""
    made = torch.cat([image, torch.zeros_like(reference[:, :, 1:])], 2)
    levels = torch.from_numpy(schedule.sigmas).to(image.device)
    for index in range(count_segments(reference.shape[2], spec)):
        part = segment(index, reference.shape[2], spec)
        targets = noise[:, :, list(part.targets)]
        for now, then in itertools.pairwise(levels):
            seen = window(part, made, targets, reference, now.expand(len(image)), with_image)
            targets = targets + (then - now) * velocity(seen)[:, :, seen.noisy]
        made[:, :, list(part.targets)] = targets
    return made
