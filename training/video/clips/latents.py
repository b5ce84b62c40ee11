"""Latents of clip windows from a trained codec, cached beside the clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...loop.cached import Progress, parts, remembered, silent
from ...loop.device import mixed_precision
from ...loop.networks import pretrained
from .dataset import Clips, scaled
from .places import Places, places


@dataclass(frozen=True)
class Windows:
    """N windows of clips as a codec's latents, with unit variance in each channel, on the processor."""

    places: Places
    latents: Tensor  # (N, channels, frames, height, width) float16


class FrozenCodec:
    """A frozen AutoencoderKLWan with latents of unit variance, for whole clips."""

    def __init__(self, folder: Path, device: torch.device, part: str = "vae") -> None:
        from diffusers import AutoencoderKLWan

        self.vae: Any = pretrained(AutoencoderKLWan, folder / part).eval().requires_grad_(False).to(device)
        self.device, config = device, self.vae.config
        mean, std = (torch.tensor(values, device=device) for values in (config.latents_mean, config.latents_std))
        self.mean, self.std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Return latents (B, C, f, h, w) float32 of video (B, 3, F, H, W) in [-1, 1]."""
        with mixed_precision(self.device):
            posterior = self.vae.encode(video.to(self.device)).latent_dist
        return (posterior.mode().float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return video (B, 3, F, H, W) in [-1, 1] from latents of `encode`."""
        with mixed_precision(self.device):
            return self.vae.decode(latents.to(self.device) * self.std + self.mean).sample.float()


def cached_windows(
    clips: Clips, folder: Path, frames: int, scale: int, each: int, varied: bool, progress: Progress = silent,
    image: bool = False, part: str = "vae",
) -> Windows:  # fmt: skip
    """Encode the windows of `places`, of `frames` frames scaled down by `scale`, with the codec `folder`/`part`.

    With `image` a window is its first frame and then grey frames: the condition of Wan's pipeline.
    """
    where = places(clips, each, varied)

    def encode() -> dict[str, Tensor]:
        codec, latents = FrozenCodec(folder, clips.device, part), []
        for chosen in parts(len(where), "encoding clips", progress, 8):
            if image:
                video = F.pad(scaled(where.images(clips, chosen, frames), scale), (0, 0, 0, 0, 0, frames - 1))
            else:
                video = scaled(where.videos(clips, chosen, frames), scale)
            latents.append(codec.encode(video).half().cpu())
        return {"latents": torch.cat(latents)}

    of = "" if part == "vae" else f"-{part}"
    split = clips.rows[0].split.replace(" ", "-")
    kind = f"{'images' if image else 'windows'}{'-varied' if varied else ''}"
    name = f"{kind}-{split}-{frames}-{scale}-{each}-{folder.name}{of}.safetensors"
    weights = folder / part / "diffusion_pytorch_model.safetensors"
    found = remembered(clips.folder / name, [weights, clips.folder / "clips.json"], encode)
    return Windows(where, found["latents"])
