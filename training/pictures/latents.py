"""Cache the pictures' latents beside the data."""

from __future__ import annotations

from pathlib import Path

import torch

from ..loop.cached import Progress, parts, remembered, silent
from ..loop.networks import pretrained
from .dataset import Pictures

"""Takes the current work, and the numbers of finished and of all pictures."""


@torch.no_grad()
def cached_latents(pictures: Pictures, folder: Path, progress: Progress = silent) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the posterior mean and standard deviation (N, 16, 16, 16) of every picture, by `folder/vae`.

    Both are on the training device. The cache is beside the data, because `folder` may ship with Segue.
    """
    from diffusers import AutoencoderKL

    def encode() -> dict[str, torch.Tensor]:
        vae = pretrained(AutoencoderKL, folder / "vae").eval().to(pictures.device)
        indices = parts(len(pictures.rows), "encoding pictures", progress)
        found = [vae.encode(pictures.on_white(part)).latent_dist for part in indices]
        return {"mean": torch.cat([p.mean for p in found]), "std": torch.cat([p.std for p in found])}

    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = remembered(
        pictures.table.with_name(f"latents-{folder.name}.safetensors"), [weights, pictures.table], encode
    )
    return tensors["mean"].to(pictures.device), tensors["std"].to(pictures.device)
