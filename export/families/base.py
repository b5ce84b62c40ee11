"""What every family states about a checkpoint: sampler, latents, sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.bundle.manifest import Latents, Sampler, Sizes, Video


@dataclass(frozen=True)
class Facts:
    """What the manifest says of a checkpoint beside its graphs."""

    sampler: Sampler
    latents: Latents
    sizes: Sizes
    video: Video | None = None
    zero_negative: bool = False
    wide: tuple[str, ...] = ()  # folders whose activations overflow fp16
