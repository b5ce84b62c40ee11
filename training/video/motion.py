"""Train SwiftI2V's Stage I: Wan's image-to-video transformer on low-resolution clips, as a whole or by LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.sampling.motion import image_mask
from ...runtime.sampling.schedule import custom_schedule, shift_sigmas
from ..loop.cached import Progress, silent
from ..loop.device import check_compiler, mixed_precision
from ..loop.networks import pretrained, xavier_linears
from ..pictures.sampling import euler
from .clips.dataset import Clips, sheet
from .clips.latents import FrozenCodec, cached_windows
from .spec import MotionSpec
from .text import Umt5Conditioner
from .write import write_motion

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # linears that LoRA adapts, by the ends of their names


@dataclass(frozen=True)
class _Drawn:
    """The random data of a batch of B windows, on the processor."""

    latents: Tensor  # (B, C, f, h, w)
    image: Tensor  # (B, C, f, h, w)
    captions: list[str]
    noise: Tensor  # (B, C, f, h, w)
    sigma: Tensor  # (B,)


class Motion:
    """Flow matching (velocity eps - x0, time input 1000 sigma) on windows of clips, given their first frame."""

    after: tuple[str, ...] = ("motion.guidance", "motion.revision")

    def __init__(self, spec: MotionSpec, seed: int, progress: Progress = silent) -> None:
        self.spec, self.clips = spec, Clips(Path(spec.data))
        device = self.clips.device
        folder, shared = Path(spec.codec), (spec.frames, spec.scale, spec.windows, spec.varied)
        self.windows = cached_windows(self.clips, folder, *shared, progress)
        self.images = cached_windows(self.clips, folder, *shared, progress, image=True).latents
        self.text = Umt5Conditioner(Path(spec.text), spec.length, device)
        torch.manual_seed(seed)
        self.transformer: Any = self._transformer().to(device)
        self.module: nn.Module = self.transformer
        if spec.compile:
            check_compiler()
        self.forward: Any = torch.compile(self.transformer) if spec.compile else self.transformer

    def draw(self, batch: int, generator: torch.Generator) -> _Drawn:
        """Draw windows, captions, noise and levels."""
        rows = self.windows.places.draw(batch, generator)
        captions = self.windows.places.captions(self.clips, rows, self.spec.caption_dropout, generator)
        latents = self.windows.latents[rows].float()
        noise = torch.randn(latents.shape, generator=generator)
        sigma = shift_sigmas(torch.rand(batch, generator=generator), self.spec.shift)
        return _Drawn(latents, self.images[rows].float(), captions, noise, sigma)

    def loss(self, drawn: _Drawn) -> tuple[Tensor, dict[str, float]]:
        """Return the velocity's mean squared error."""
        latents, image, noise, sigma = (
            part.to(self.clips.device) for part in (drawn.latents, drawn.image, drawn.noise, drawn.sigma)
        )
        mixed = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))
        velocity = self._velocity(mixed, sigma, image, self.text(drawn.captions))
        return F.mse_loss(velocity, noise - latents), {}

    @torch.no_grad()
    def grid(self) -> Tensor:
        """Return every fourth frame of six clips, each above its drawing from the first frame in ten steps."""
        rows = torch.arange(6) * (len(self.windows.places) // 6)
        latents, image = (part[rows].float().to(self.clips.device) for part in (self.windows.latents, self.images))
        text = self.text(self.windows.places.names(self.clips, rows))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(self.clips.device)
        schedule = custom_schedule([1 - i / 10 for i in range(10)], self.spec.shift, 1000)
        drawn = euler(lambda x, sigma: self._velocity(x, sigma, image, text), noise, schedule)
        codec = FrozenCodec(Path(self.spec.codec), self.clips.device)
        return sheet(zip(codec.decode(latents), codec.decode(drawn), strict=True))

    def finish(self, out: Path) -> None:
        """Write `out/checkpoint/`: a checkpoint of Wan's image-to-video pipeline."""
        write_motion(self.transformer, self.spec, out / "checkpoint")

    def _velocity(self, latents: Tensor, sigma: Tensor, image: Tensor, text: Tensor) -> Tensor:
        mask = torch.from_numpy(image_mask(*latents.shape[2:])).to(latents)
        given = torch.cat([latents, mask.expand(len(latents), -1, -1, -1, -1), image], 1)
        with mixed_precision(latents.device):
            return self.forward(given, 1000 * sigma, text, return_dict=False)[0].float()

    def _transformer(self) -> nn.Module:
        from diffusers import WanTransformer3DModel

        spec = self.spec
        channels = self.windows.latents.shape[1]
        if not spec.start:
            return initialised(
                WanTransformer3DModel(
                    num_attention_heads=spec.heads, attention_head_dim=spec.head, in_channels=2 * channels + 4,
                    out_channels=channels, text_dim=self.text.width, ffn_dim=spec.feed_forward, num_layers=spec.layers,
                    rope_max_seq_len=64,
                )
            )  # fmt: skip
        model = pretrained(WanTransformer3DModel, Path(spec.start) / "transformer")
        if spec.rank:
            from peft import LoraConfig

            model.requires_grad_(False)
            model.add_adapter(LoraConfig(r=spec.rank, lora_alpha=spec.rank, target_modules=list(ADAPTED)))
        return model


@torch.no_grad()
def initialised(transformer: Any) -> Any:
    """Initialise Wan's transformer like DiT (Peebles & Xie 2023): Xavier linears, closed residual branches."""
    xavier_linears(transformer)
    embedder = transformer.condition_embedder
    for linear in (embedder.time_embedder.linear_1, embedder.time_embedder.linear_2):
        nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(embedder.time_proj.weight)
    nn.init.zeros_(transformer.proj_out.weight)
    for block in transformer.blocks:
        block.scale_shift_table.zero_()
        nn.init.zeros_(block.attn2.to_out[0].weight)
    transformer.scale_shift_table.zero_()
    return transformer
