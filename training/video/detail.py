"""Train SwiftI2V's Stage II: segments of clips at high resolution, from the image latent and a motion reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from ...export.families.wan.segment import SegmentTransformer, widened
from ...runtime.bundle.segments import count_segments, segment
from ...runtime.sampling.schedule import custom_schedule, shift_sigmas
from ..data.clips import FPS, SIZE
from ..loop.cached import Progress, silent
from ..loop.device import check_compiler, mixed_precision
from ..loop.networks import pretrained
from .clips.dataset import Clips, sheet
from .clips.latents import FrozenCodec, cached_windows
from .clips.references import ReferenceSpec, cached_references
from .motion import initialised
from .spec import DetailSpec
from .text import Umt5Conditioner
from .windows import Window, generate, window
from .write import write_detail


@dataclass(frozen=True)
class _Drawn:
    """The random data of a batch of B windows of clips, on the processor. All have the same segment."""

    index: int  # of the segment
    clean: Tensor  # (B, C, T, h, w)
    seen: Tensor  # `clean` with corrupted neighbours
    reference: Tensor  # (B, C, T, h, w)
    captions: list[str]
    noise: Tensor  # (B, C, M, h, w)
    sigma: Tensor  # (B,)


class Detail:
    """Flow matching on the targets of segments. The window's other frames are clean, at timestep 0."""

    after: tuple[str, ...] = ("detail.revision", "detail.decoder")

    def __init__(self, spec: DetailSpec, seed: int, progress: Progress = silent) -> None:
        self.spec, self.clips, folder = spec, Clips(Path(spec.data)), Path(spec.codec)
        device = self.clips.device
        self.windows = cached_windows(self.clips, folder, spec.frames, 1, spec.windows, spec.varied, progress)
        self.reference = self._references(spec.reference, seed, progress)
        self.resampled = self._references("resampled", seed, progress) if spec.resampled else self.reference
        self.text = Umt5Conditioner(Path(spec.text), spec.length, device)
        torch.manual_seed(seed)
        self.transformer: Any = self._transformer().to(device)
        self.one_way: list[OneWay] = []
        if not spec.both_ways:
            for block in self.transformer.blocks:
                self.one_way.append(OneWay())
                block.attn1.set_processor(self.one_way[-1])
        self.module: nn.Module = self.transformer
        if spec.compile:
            check_compiler()
        self.forward: Any = torch.compile(self.transformer, dynamic=False) if spec.compile else self.transformer

    def draw(self, batch: int, generator: torch.Generator) -> _Drawn:
        """Draw a segment, windows of clips, captions, noise and levels."""
        spec = self.spec
        rows = self.windows.places.draw(batch, generator)
        clean, reference = self.windows.latents[rows].float(), self.reference[rows].float()
        if spec.resampled:
            good = torch.rand(batch, generator=generator) < spec.resampled
            reference[good] = self.resampled[rows[good]].float()
        index = int(torch.randint(count_segments(clean.shape[2], spec.segments), (), generator=generator))
        part = segment(index, clean.shape[2], spec.segments)
        captions = self.windows.places.captions(self.clips, rows, spec.caption_dropout, generator)
        noise = torch.randn(clean[:, :, list(part.targets)].shape, generator=generator)
        sigma = shift_sigmas(torch.rand(batch, generator=generator), spec.shift)
        seen = clean
        if spec.corrupted:
            level = spec.corrupted * (torch.rand(batch, generator=generator) < 0.5).view(-1, 1, 1, 1, 1)
            seen = clean + level * torch.randn(clean.shape, generator=generator)
            seen[:, :, 0] = clean[:, :, 0]
        return _Drawn(index, clean, seen, reference, captions, noise, sigma)

    def loss(self, drawn: _Drawn) -> tuple[Tensor, dict[str, float]]:
        """Return the velocity's mean squared error over the targets."""
        clean, seen, reference, noise, sigma = (
            part.to(self.clips.device) for part in (drawn.clean, drawn.seen, drawn.reference, drawn.noise, drawn.sigma)
        )
        part = segment(drawn.index, clean.shape[2], self.spec.segments)
        targets = clean[:, :, list(part.targets)]
        noisy = torch.lerp(targets, noise, sigma.view(-1, 1, 1, 1, 1))
        given = window(part, seen, noisy, reference, sigma, self.spec.image)
        velocity = self.velocity(given, self.text(drawn.captions))
        return F.mse_loss(velocity[:, :, given.noisy], noise - targets), {}

    @torch.no_grad()
    def grid(self) -> Tensor:
        """Return every fourth frame of four clips: the reference, its result in four steps, and the clip."""
        rows = torch.arange(4) * (len(self.windows.places) // 4)
        clean, reference = (part[rows].float().to(self.clips.device) for part in (self.windows.latents, self.reference))
        text = self.text(self.windows.places.names(self.clips, rows))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
        schedule = custom_schedule([1.0, 0.75, 0.5, 0.25], self.spec.shift, 1000)
        made = generate(
            lambda given: self.velocity(given, text), clean[:, :, :1], reference, noise, self.spec.segments, schedule,
            self.spec.image,
        )  # fmt: skip
        codec = FrozenCodec(Path(self.spec.codec), self.clips.device)
        return sheet(zip(*(codec.decode(latents) for latents in (reference, made, clean)), strict=True))

    def finish(self, out: Path) -> None:
        """Write `out/checkpoint/`: both stages, ready for export."""
        write_detail(self.transformer, self.spec, (SIZE, SIZE), float(FPS), out / "checkpoint")

    def velocity(self, given: Window, text: Tensor) -> Tensor:
        """Return the velocity (B, C, frames, h, w) float32 of a window. `text` holds states (B, length, width)."""
        a_frame = given.latents[0, 0, 0].numel() // math.prod(self.transformer.config.patch_size)
        for processor in self.one_way:
            processor.clean = given.noisy.start * a_frame
        with mixed_precision(given.latents.device):
            return self.forward(given.latents, given.timesteps, text, given.positions).float()

    def _references(self, kind: str, seed: int, progress: Progress) -> Tensor:
        spec = self.spec
        made = ReferenceSpec(spec.motion, kind, spec.lowest, spec.highest)
        return cached_references(
            self.clips, Path(spec.codec), spec.frames, spec.scale, spec.windows, spec.varied, spec.length, made, seed,
            progress,
        )  # fmt: skip

    def _transformer(self) -> SegmentTransformer:
        spec, channels = self.spec, self.windows.latents.shape[1]
        if (Path(spec.start) / "detail_transformer").is_dir():
            return pretrained(SegmentTransformer, Path(spec.start) / "detail_transformer")
        if spec.start:
            return widened(pretrained(WanTransformer3DModel, Path(spec.start) / "transformer"), channels)
        plain = WanTransformer3DModel(
            num_attention_heads=spec.heads, attention_head_dim=spec.head, in_channels=channels, out_channels=channels,
            text_dim=self.text.width, ffn_dim=spec.feed_forward, num_layers=spec.layers, rope_max_seq_len=64,
        )  # fmt: skip
        return widened(initialised(plain), channels)


class OneWay(WanAttnProcessor):
    """Self-attention that hides the other tokens from the first `clean` tokens, for an ablation."""

    clean = 0

    def __call__(self, attn: Any, hidden_states: Tensor, *rest: Any) -> Tensor:
        """Return the result of diffusers' processor with that mask."""
        tokens = hidden_states.shape[1]
        sees = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden_states.device)
        sees[: self.clean, self.clean :] = False
        return super().__call__(attn, hidden_states, None, sees, rest[-1])
