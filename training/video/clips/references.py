"""Motion references for the training of Stage II: Stage I's version of clips, at high resolution, as latents.

SwiftI2V never trains Stage II on clean low-resolution video. It adds noise of a middle level to the clip's latents, and
Stage I denoises them ("stage-transition"). The reference then has Stage I's faults and the clip's content.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....errors import TrainingError
from ....runtime.sampling.motion import expert_of, image_mask
from ....runtime.sampling.reference import hybrid_reference
from ...loop.cached import Progress, parts, remembered, silent
from ...loop.device import mixed_precision
from ...loop.networks import pretrained
from ..text import Umt5Conditioner
from .dataset import Clips, scaled
from .latents import FrozenCodec
from .places import places

KINDS = ("transition", "autoencoded", "resampled")


@dataclass(frozen=True)
class ReferenceSpec:
    """How to make references from clips."""

    motion: str  # Stage I's checkpoint
    kind: str = "transition"  # for ablations: only Stage I's autoencoder, or only scaling down and up
    lowest: float = 0.3  # the noise levels of the transition, after the shift
    highest: float = 0.7
    steps: int = 2  # of Stage I, down from that level

    def __post_init__(self) -> None:
        """Raise TrainingError for impossible values."""
        if self.kind not in KINDS:
            raise TrainingError(f"reference = {self.kind!r} must be one of {', '.join(KINDS)}. Correct the recipe.")
        if not 0 < self.lowest <= self.highest <= 1 or self.steps < 1:
            raise TrainingError(
                f"lowest = {self.lowest}, highest = {self.highest}, steps = {self.steps}: not possible. Correct the "
                "recipe: 0 < lowest <= highest <= 1, and steps is at least 1."
            )


class MotionModel:
    """A trained Stage I with its autoencoder and text encoder."""

    def __init__(self, folder: Path, length: int, device: torch.device) -> None:
        from diffusers import WanTransformer3DModel

        names = [name for name in ("transformer", "transformer_2") if (folder / name / "config.json").is_file()]
        self.experts: list[Any] = [
            pretrained(WanTransformer3DModel, folder / name).eval().requires_grad_(False).to(device) for name in names
        ]
        if not self.experts:
            raise TrainingError(f"{folder} has no transformer/config.json. Name Stage I's checkpoint as motion.")
        self.codec, self.text, self.device = (
            FrozenCodec(folder, device),
            Umt5Conditioner(folder, length, device),
            device,
        )

    @torch.no_grad()
    def denoise(
        self, latents: Tensor, image: Tensor, captions: list[str], levels: Tensor, guidance: float = 1.0
    ) -> Tensor:
        """Denoise latents (B, C, f, h, w) along `levels` (S + 1, B) by Euler steps. The last level is 0."""
        tied, free = self.text(captions), self.text([""] * len(captions)) if guidance > 1 else None
        mask = torch.from_numpy(image_mask(*latents.shape[2:])).to(latents).expand(len(latents), -1, -1, -1, -1)
        for now, then in itertools.pairwise(levels):
            given = torch.cat([latents, mask, image], 1)
            velocity = self._velocity(given, now, tied)
            if free is not None:
                without = self._velocity(given, now, free)
                velocity = without + guidance * (velocity - without)
            latents = latents + (then - now).view(-1, 1, 1, 1, 1) * velocity
        return latents

    def _velocity(self, given: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        found = torch.empty_like(given[:, : self.codec.mean.shape[1]])
        which = torch.tensor([expert_of(1000 * level, len(self.experts), 1000) for level in sigma.tolist()])
        for number, expert in enumerate(self.experts):
            rows = (which == number).nonzero()[:, 0].to(given.device)
            if len(rows):
                with mixed_precision(given.device):
                    made = expert(given[rows], 1000 * sigma[rows], text[rows], return_dict=False)[0]
                found[rows] = made.float()
        return found


def low_resolution(
    video: Tensor, scale: int, captions: list[str], spec: ReferenceSpec, model: MotionModel, generator: torch.Generator
) -> Tensor:
    """Return Stage I's version (B, 3, F, h, w) of video (B, 3, F, H, W), for Stage II's training."""
    small = scaled(video, scale)
    if spec.kind == "resampled":
        return small
    latents = model.codec.encode(small)
    if spec.kind == "transition":
        grey = torch.cat([small[:, :, :1], torch.zeros_like(small[:, :, 1:])], 2)
        level = spec.lowest + (spec.highest - spec.lowest) * torch.rand(len(video), generator=generator).to(latents)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        noisy = torch.lerp(latents, noise, level.view(-1, 1, 1, 1, 1))
        levels = level * torch.linspace(1, 0, spec.steps + 1).to(level)[:, None]
        latents = model.denoise(noisy, model.codec.encode(grey), captions, levels)
    return model.codec.decode(latents)


def spliced(low: Tensor, image: Tensor) -> Tensor:
    """Return the hybrid references (B, 3, F, H, W) from clips (B, 3, F, h, w) and their images (B, 3, H, W)."""
    made = []
    for clip, first in zip(low.cpu(), image.cpu(), strict=True):
        frames = clip.permute(1, 2, 3, 0).contiguous().numpy()
        made.append(np.stack(list(hybrid_reference(frames, first.permute(1, 2, 0).contiguous().numpy()))))
    return torch.from_numpy(np.stack(made)).permute(0, 4, 1, 2, 3).to(image.device)


def cached_references(
    clips: Clips, codec: Path, frames: int, scale: int, each: int, varied: bool, length: int, spec: ReferenceSpec,
    seed: int, progress: Progress = silent, part: str = "vae",
) -> Tensor:  # fmt: skip
    """Return z_ref (N, C, T, h, w) float16 for the full-size windows of `cached_windows`."""
    where = places(clips, each, varied)
    motion = Path(spec.motion)

    def make() -> dict[str, Tensor]:
        model, detail = MotionModel(motion, length, clips.device), FrozenCodec(codec, clips.device, part)
        generator, made = torch.Generator().manual_seed(seed), []
        for chosen in parts(len(where), "making motion references", progress, 8):
            video = where.videos(clips, chosen, frames)
            low = low_resolution(video, scale, where.names(clips, chosen), spec, model, generator)
            made.append(detail.encode(spliced(low.clamp(-1, 1), video[:, :, 0])).half().cpu())
        return {"reference": torch.cat(made)}

    key = hashlib.sha256(f"{spec} {seed} {length}".encode()).hexdigest()[:12]
    name = f"references-{spec.kind}{'-varied' if varied else ''}-{frames}-{scale}-{each}-{key}.safetensors"
    weights = [codec / part / "diffusion_pytorch_model.safetensors", *sorted(motion.glob("*/*.safetensors"))]
    return remembered(clips.folder / name, [*weights, clips.folder / "clips.json"], make)["reference"]
