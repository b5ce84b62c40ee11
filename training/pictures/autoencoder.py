"""Train AutoencoderKL (f8, 16 latent channels) on random crops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import TrainingError
from ...runtime.storage.directory import NewDirectory
from ..loop.device import mixed_precision
from ..loop.networks import pretrained
from .dataset import Pictures


@dataclass(frozen=True)
class AutoencoderSpec:
    """The autoencoder and its training."""

    data: str
    channels: tuple[int, ...] = (24, 48, 96, 160)
    layers: int = 1
    groups: int = 8
    crop: int = 64  # pixels
    start: str = ""  # a directory with `vae/` to start from
    kl_weight: float = 5e-5
    lpips_weight: float = 0.0
    # Above 0 only the decoder learns, on latents with noise up to this deviation. It then tolerates small errors of a
    # transformer (Zheng et al. 2025).
    noise: float = 0.0


@dataclass(frozen=True)
class _Drawn:
    """The random data of a batch of B crops, on the processor."""

    chosen: torch.Tensor  # (B,) pictures
    corners: torch.Tensor  # (2, B) top and left, pixels
    mirrored: torch.Tensor  # (B,) bool
    noise: torch.Tensor  # (B, 16, h, w) of the posterior
    added: torch.Tensor  # (B, 16, h, w) noise on the latents, or a single 0


class Autoencoder:
    """The autoencoder's loss: L1 + MSE on pixels, a light KL term, LPIPS if its weight is above 0."""

    after: tuple[str, ...] = ()

    def __init__(self, spec: AutoencoderSpec, seed: int) -> None:
        from diffusers import AutoencoderKL

        self.spec = spec
        self.pictures = Pictures(Path(spec.data))
        torch.manual_seed(seed)
        if len(spec.channels) != 4:
            raise TrainingError(
                f"autoencoder.channels = {list(spec.channels)}: f8 needs four widths. Give one for each scale."
            )
        if spec.start:
            self.vae = pretrained(AutoencoderKL, Path(spec.start) / "vae")
        else:
            depth = len(spec.channels)
            self.vae = AutoencoderKL(
                block_out_channels=spec.channels,
                down_block_types=("DownEncoderBlock2D",) * depth,
                up_block_types=("UpDecoderBlock2D",) * depth,
                layers_per_block=spec.layers,
                latent_channels=16,
                norm_num_groups=spec.groups,
                sample_size=128,
                scaling_factor=1.0,
                shift_factor=0.0,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
        if spec.noise:
            if not spec.start:
                raise TrainingError("autoencoder.noise trains only the decoder. Name the trained autoencoder as start.")
            self.vae.encoder.requires_grad_(False)
        self.vae.to(self.pictures.device, memory_format=torch.channels_last)
        self.lpips: nn.Module | None = None
        if spec.lpips_weight:
            from ..metrics.nets import Lpips

            self.lpips = Lpips().to(self.pictures.device)
        self.module: nn.Module = self.vae

    def draw(self, batch: int, generator: torch.Generator) -> _Drawn:
        """Draw pictures, crops, mirroring and noise."""
        chosen, crop = self.pictures.draw(batch, generator), self.spec.crop
        corners = torch.randint(0, self.pictures.rgba.shape[1] - crop + 1, (2, batch), generator=generator)
        mirrored = torch.rand(batch, generator=generator) < 0.5
        shape = (batch, 16, crop // 8, crop // 8)
        noise = torch.randn(shape, generator=generator)
        added = torch.zeros(())
        if self.spec.noise:
            level = self.spec.noise * torch.rand(batch, 1, 1, 1, generator=generator)
            added = level * torch.randn(shape, generator=generator)
        return _Drawn(chosen, corners, mirrored, noise, added)

    def loss(self, drawn: _Drawn) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of the drawn crops, half of them mirrored."""
        pixels = self._crops(drawn)
        with mixed_precision(pixels.device), torch.set_grad_enabled(not self.spec.noise):
            posterior = self.vae.encode(pixels).latent_dist
        mean, std, logvar = posterior.mean.float(), posterior.std.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + std**2 - 1 - logvar).mean()
        latents = mean + std * drawn.noise.to(mean.device) + drawn.added.to(mean.device)
        with mixed_precision(pixels.device):
            decoded = self.vae.decode(latents).sample.float()
        mse = F.mse_loss(decoded, pixels)
        loss = mse + F.l1_loss(decoded, pixels) + self.spec.kl_weight * kl
        figures = {"kl": kl.item(), "psnr": -10 * torch.log10(mse.detach() / 4).item()}
        if self.lpips is not None:
            distance = self.lpips(decoded, pixels).mean()
            loss = loss + self.spec.lpips_weight * distance
            figures["lpips"] = distance.item()
        return loss, figures

    def grid(self) -> torch.Tensor:
        """Return eight pictures above their reconstructions."""
        pixels = self.pictures.on_white(self.pictures.draw(8, torch.Generator().manual_seed(0)))
        decoded = self.vae.decode(self.vae.encode(pixels).latent_dist.mode()).sample
        both = torch.cat([torch.cat(list(pixels), -1), torch.cat(list(decoded), -1)], -2)
        return (both / 2 + 0.5).clamp(0, 1)

    def finish(self, out: Path) -> None:
        """Write `out/vae/`. A trained encoder's latents get mean 0 and variance 1 in each channel."""
        if not self.spec.noise:
            normalise_latents(self.vae, *self._latent_moments())
        with NewDirectory(out / "vae", replace=True) as new:
            self.vae.to(memory_format=torch.contiguous_format).save_pretrained(new.path)
            new.commit()

    def _crops(self, drawn: _Drawn) -> torch.Tensor:
        pixels, crop = self.pictures.on_white(drawn.chosen), self.spec.crop
        places = zip(pixels, *drawn.corners.tolist(), drawn.mirrored.tolist(), strict=True)
        crops = [p[:, y : y + crop, x : x + crop].flip(-1 if m else ()) for p, y, x, m in places]
        return torch.stack(crops).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _latent_moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        indices = self.pictures.draw(1024, torch.Generator().manual_seed(0))
        latents = torch.cat(
            [self.vae.encode(self.pictures.on_white(part)).latent_dist.mode() for part in indices.split(64)]
        )
        return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def normalise_latents(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold each channel's (z - mean) / std into the encoder's last layer, the inverse into the decoder's first.

    SD3's VAE config has one scale and one shift for all channels. Folding gives each channel unit variance, and keeps
    scale 1 and shift 0. It is exact inside. At the border, the decoder's zero padding now means the channel's mean.
    """
    channels = mean.numel()
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    last.weight[:channels] /= std[:, None, None, None]
    last.bias[:channels] = (last.bias[:channels] - mean) / std
    last.bias[channels:] -= 2 * std.log()
    first.bias += (first.weight * mean[None, :, None, None]).sum((1, 2, 3))
    first.weight *= std[None, :, None, None]
