"""Train a causal video autoencoder on crops of clips: AutoencoderKLWan with Wan 2.1's or 2.2's structure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import TrainingError
from ...runtime.bundle.segments import COMPRESSION
from ...runtime.storage.directory import NewDirectory
from ..loop.device import mixed_precision
from ..loop.networks import pretrained
from .clips.dataset import Clips, pixels, scaled, sheet
from .widening import widen


@dataclass(frozen=True)
class CodecSpec:
    """The autoencoder and its training."""

    data: str
    kind: str = "2.1"  # Wan 2.1's: 8 x 8 x 4; or "2.2": 16 x 16 x 4, by patches of 2 and residual blocks
    base: int = 16
    decoder_base: int = 16
    widths: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 1
    latents: int = 16  # channels
    frames: int = 9  # of a crop; 4k + 1
    crop: int = 64  # pixels, after scaling
    scale: int = 1  # divides the sides of a frame
    start: str = ""  # a directory with `vae/` to start from
    kl_weight: float = 5e-5
    lpips_weight: float = 0.05
    # Above 0 only the decoder learns, on latents with noise up to this many deviations of the latents. It then
    # tolerates small errors of a transformer.
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Raise TrainingError for impossible values."""
        wrong = {
            "kind": self.kind not in ("2.1", "2.2"),
            "widths": len(self.widths) != 4,
            "frames": self.frames < 1 or self.frames % COMPRESSION != 1,
            "scale": self.scale < 1 or 128 % self.scale != 0,
            "noise": self.noise < 0 or (self.noise > 0 and not self.start),
            "crop": self.crop % self.factor != 0 or not 0 < self.crop <= 128 // max(self.scale, 1),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise TrainingError(
                f"[codec] {name} = {getattr(self, name)!r} is not possible. Correct the recipe: kind is 2.1 or 2.2, "
                "widths has four values, frames is 4k + 1, scale divides 128, crop is a multiple of "
                f"{self.factor} within a scaled frame; noise above 0 needs a start."
            )

    @property
    def factor(self) -> int:
        """Return the pixels of a frame's side for each latent."""
        return 8 if self.kind == "2.1" else 16


@dataclass(frozen=True)
class _Drawn:
    """The random data of a batch of B crops, on the processor."""

    video: Tensor  # (B, F, crop x scale, crop x scale, 3) uint8
    noise: Tensor  # (B, latents, f, h, w) of the posterior
    added: Tensor  # (B, latents, f, h, w) noise in deviations of the latents, or a single 0


class Codec:
    """The autoencoder's loss: L1 + MSE on pixels, a light KL term, LPIPS of frames."""

    after: tuple[str, ...] = ()

    def __init__(self, spec: CodecSpec, seed: int) -> None:
        from diffusers import AutoencoderKLWan

        self.spec, self.clips = spec, Clips(Path(spec.data))
        torch.manual_seed(seed)
        self.vae: Any = AutoencoderKLWan(**config_of(spec))
        if spec.start:
            start: Any = pretrained(AutoencoderKLWan, Path(spec.start) / "vae")
            widen(start, self.vae, torch.Generator().manual_seed(seed))
            self.vae.register_to_config(latents_mean=start.config.latents_mean, latents_std=start.config.latents_std)
        if spec.noise:
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)
        self.vae.to(self.clips.device)
        self.module: nn.Module = self.vae
        self.lpips: nn.Module | None = None
        if spec.lpips_weight:
            from ..metrics.nets import Lpips

            self.lpips = Lpips().to(self.clips.device)

    def draw(self, batch: int, generator: torch.Generator) -> _Drawn:
        """Draw clips, their first frames, crops, mirroring and noise."""
        spec, side = self.spec, self.spec.crop * self.spec.scale
        crops = []
        for index in self.clips.draw(batch, generator).tolist():
            start = int(torch.randint(self.clips.rows[index].frames, (), generator=generator))
            top, left = torch.randint(128 - side + 1, (2,), generator=generator).tolist()
            mirrored = bool(torch.rand((), generator=generator) < 0.5)
            crop = self.clips.take(index, start, spec.frames)[:, top : top + side, left : left + side]
            crops.append(crop.flip(2) if mirrored else crop)
        small = spec.crop // spec.factor
        shape = (batch, spec.latents, 1 + (spec.frames - 1) // COMPRESSION, small, small)
        noise, added = torch.randn(shape, generator=generator), torch.zeros(())
        if spec.noise:
            level = spec.noise * torch.rand(batch, 1, 1, 1, 1, generator=generator)
            added = level * torch.randn(shape, generator=generator)
        return _Drawn(torch.stack(crops), noise, added)

    def loss(self, drawn: _Drawn) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of the drawn crops."""
        video = scaled(pixels(drawn.video.to(self.clips.device)), self.spec.scale)
        with mixed_precision(video.device), torch.set_grad_enabled(not self.spec.noise):
            posterior = self.vae.encode(video).latent_dist
        mean, std, logvar = posterior.mean.float(), posterior.std.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + std**2 - 1 - logvar).mean()
        deviation = mean.new_tensor(self.vae.config.latents_std).view(-1, 1, 1, 1)
        latents = mean + std * drawn.noise.to(mean.device) + deviation * drawn.added.to(mean.device)
        with mixed_precision(video.device):
            decoded = self.vae.decode(latents).sample.float()
        mse = F.mse_loss(decoded, video)
        loss = mse + F.l1_loss(decoded, video) + self.spec.kl_weight * kl
        figures = {"kl": kl.item(), "psnr": -10 * torch.log10(mse.detach() / 4).item()}
        if self.lpips is not None:
            frames = [part.transpose(1, 2).flatten(0, 1) for part in (decoded, video)]
            distance = self.lpips(*frames).mean()
            loss = loss + self.spec.lpips_weight * distance
            figures["lpips"] = distance.item()
        return loss, figures

    def grid(self) -> Tensor:
        """Return every fourth frame of four clips, each above its reconstruction."""
        video = self._whole(torch.arange(4) * (len(self.clips.rows) // 4))
        with torch.no_grad():
            decoded = self.vae.decode(self.vae.encode(video).latent_dist.mode()).sample
        return sheet(zip(video, decoded, strict=True))

    def finish(self, out: Path) -> None:
        """Write `out/vae/`. Like Wan's, its config has the mean and deviation of each latent channel."""
        if not self.spec.noise:
            latents = self._latents()
            self.vae.register_to_config(
                latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
            )
        with NewDirectory(out / "vae", replace=True) as new:
            self.vae.save_pretrained(new.path)
            new.commit()

    @torch.no_grad()
    def _latents(self) -> Tensor:
        indices = self.clips.draw(64, torch.Generator().manual_seed(0))
        return torch.cat([self.vae.encode(self._whole(part)).latent_dist.mode() for part in indices.split(4)])

    def _whole(self, indices: Tensor) -> Tensor:
        frames = torch.stack([self.clips.take(int(index), 0, self.spec.frames) for index in indices])
        return scaled(pixels(frames.to(self.clips.device)), self.spec.scale)


def config_of(spec: CodecSpec) -> dict[str, Any]:
    """Return the config of AutoencoderKLWan: the published one, except the widths and the number of blocks."""
    shared = {
        "base_dim": spec.base,
        "decoder_base_dim": spec.decoder_base,
        "z_dim": spec.latents,
        "dim_mult": list(spec.widths),
        "num_res_blocks": spec.blocks,
        "latents_mean": [0.0] * spec.latents,
        "latents_std": [1.0] * spec.latents,
    }
    if spec.kind == "2.1":
        return shared
    return shared | {
        "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
    }  # fmt: skip
