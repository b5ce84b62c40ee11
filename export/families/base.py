"""The facts that every family reads from a checkpoint: sampler, latents, sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.bundle.manifest import Latents, Sampler, Sizes, Video


@dataclass(frozen=True)
class Facts:
    """The manifest's facts about a checkpoint, besides its graphs."""

    sampler: Sampler
    latents: Latents
    sizes: Sizes
    video: Video | None = None
    zero_negative: bool = False
    wide: tuple[str, ...] = ()  # folders whose activations overflow fp16
    notes: tuple[str, ...] = ()  # remarks for whoever exports
