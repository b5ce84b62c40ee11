"""Train the SD3 transformer by flow matching on cached latents. Write a checkpoint in diffusers format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import TrainingError
from ...runtime.sampling.schedule import default_schedule
from ..loop.cached import Progress, silent
from ..loop.device import check_compiler, mixed_precision
from ..loop.networks import pretrained, xavier_linears
from .alignment import Alignment, patch_features
from .captions import draw_captions, plain_caption
from .checkpoint import write_checkpoint
from .dataset import Pictures
from .latents import cached_latents
from .sampling import Pipeline, TextConditioner, tiled
from .spec import TeacherSpec


@dataclass(frozen=True)
class _Drawn:
    """The random data of a batch of B pictures, on the processor."""

    chosen: torch.Tensor  # (B,) pictures
    tokens: list[torch.Tensor]  # of their captions, (B, 24) for each text encoder
    posterior: torch.Tensor  # (B, 16, 16, 16) of the autoencoder
    noise: torch.Tensor  # (B, 16, 16, 16) of the diffusion
    sigma: torch.Tensor  # (B,) the noise level


class Teacher:
    """Flow matching (velocity eps - x0, time input 1000 sigma) on the captioned emoji."""

    after: tuple[str, ...] = ("teacher.guidance", "teacher.revision")

    def __init__(self, spec: TeacherSpec, seed: int, progress: Progress = silent) -> None:
        from diffusers import AutoencoderKL, SD3Transformer2DModel

        self.spec = spec
        self.pictures = Pictures(Path(spec.data))
        device = self.pictures.device
        self.vae = pretrained(AutoencoderKL, Path(spec.autoencoder) / "vae").eval().requires_grad_(False).to(device)
        self.mean, self.std = cached_latents(self.pictures, Path(spec.autoencoder), progress)
        self.text = TextConditioner(Path(spec.text), device)
        if spec.joint_width != self.text.width:
            raise TrainingError(
                f"teacher.joint_width = {spec.joint_width}, but the two text encoders have {self.text.width}. "
                f"Write {self.text.width}."
            )
        width = spec.heads * spec.head
        torch.manual_seed(seed)
        self.transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=spec.layers,
            num_attention_heads=spec.heads,
            attention_head_dim=spec.head,
            joint_attention_dim=spec.joint_width,
            caption_projection_dim=width,
            pooled_projection_dim=self.text.pooled_width,
            pos_embed_max_size=spec.positions,
        )
        initialise(self.transformer)
        self.module: nn.Module = self.transformer.to(device)
        self.alignment: Alignment | None = None
        if spec.align:
            if not 1 <= spec.align_depth <= spec.layers:
                raise TrainingError(
                    f"teacher.align_depth = {spec.align_depth} must be one of the blocks 1 to {spec.layers}."
                )
            block = self.transformer.transformer_blocks[spec.align_depth - 1]
            self.alignment = Alignment(block, width, patch_features(self.pictures, progress)).to(device)
            self.module = nn.ModuleDict({"transformer": self.transformer, "alignment": self.alignment})
        if spec.compile:
            check_compiler()
        self.forward: Any = torch.compile(self.transformer) if spec.compile else self.transformer

    def draw(self, batch: int, generator: torch.Generator) -> _Drawn:
        """Draw a class-balanced batch, its captions, noise and levels."""
        spec = self.spec
        chosen = self.pictures.draw(batch, generator)
        captions = draw_captions([self.pictures.rows[i] for i in chosen.tolist()], spec.caption_dropout, generator)
        posterior, noise = torch.randn(2, batch, *self.mean.shape[1:], generator=generator)
        sigma = torch.sigmoid(spec.time_mean + spec.time_std * torch.randn(batch, generator=generator))
        return _Drawn(chosen, self.text.tokens(captions), posterior, noise, sigma)

    def loss(self, drawn: _Drawn) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the velocity's mean squared error, plus the weighted alignment if the recipe has one."""
        spec = self.spec
        here, posterior, noise, sigma = (
            tensor.to(self.mean.device) for tensor in (drawn.chosen, drawn.posterior, drawn.noise, drawn.sigma)
        )
        latents = self.mean[here] + self.std[here] * posterior
        mixed = torch.lerp(latents, noise, sigma[:, None, None, None])
        states, pooled = self.text.encode(drawn.tokens)
        with mixed_precision(mixed.device):
            velocity = self.forward(
                hidden_states=mixed,
                encoder_hidden_states=states,
                pooled_projections=pooled,
                timestep=1000 * sigma,
                return_dict=False,
            )[0]
            misaligned = self.alignment(here) if self.alignment is not None else None
        error = F.mse_loss(velocity.float(), noise - latents)
        if misaligned is None:
            return error, {}
        return error + spec.align * misaligned, {"velocity": error.item(), "alignment": misaligned.item()}

    def grid(self) -> torch.Tensor:
        """Return pictures of 24 training captions, drawn in 20 steps."""
        order = torch.randperm(len(self.pictures.rows), generator=torch.Generator().manual_seed(1))[:24]
        captions = [plain_caption(self.pictures.rows[i]) for i in order.tolist()]
        noise = torch.randn(len(captions), 16, 16, 16, generator=torch.Generator().manual_seed(0))
        pipeline = Pipeline(self.transformer, self.vae, self.text)
        latents = pipeline.draw(captions, noise, default_schedule(20, self.spec.shift, 1000), self.spec.guidance)
        return tiled(pipeline.decode(latents))

    def finish(self, out: Path) -> None:
        """Write `out/checkpoint/`: a Stable Diffusion 3 checkpoint that diffusers loads."""
        write_checkpoint(self.transformer, self.spec, out / "checkpoint")


@torch.no_grad()
def initialise(transformer: Any) -> None:
    """Initialise like DiT (Peebles & Xie 2023, section 3.2): Xavier linears, closed residual branches."""
    xavier_linears(transformer)
    for part in (transformer.time_text_embed.timestep_embedder, transformer.time_text_embed.text_embedder):
        nn.init.normal_(part.linear_1.weight, std=0.02)
        nn.init.normal_(part.linear_2.weight, std=0.02)
    closed = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        closed += [block.norm1.linear, block.norm1_context.linear]
    for linear in closed:
        nn.init.zeros_(linear.weight)
