"""Draw many pictures at once from a checkpoint in PyTorch, for training grids and evaluation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError
from ...runtime.sampling.schedule import Schedule
from ..loop.device import mixed_precision
from ..loop.networks import pretrained
from .text_encoders import tokenize


@torch.no_grad()
def euler(velocity: Callable[[Tensor, Tensor], Tensor], latents: Tensor, schedule: Schedule) -> Tensor:
    """Denoise `latents` (B, …) along `schedule` by Euler steps. `velocity(latents, level (B,))` returns eps - x0."""
    levels = torch.from_numpy(schedule.sigmas).to(latents.device)
    for now, then in itertools.pairwise(levels):
        latents = latents + (then - now) * velocity(latents, now.expand(len(latents)))
    return latents


@torch.no_grad()
def decode(vae: Any, latents: Tensor, batch: int = 32) -> Tensor:
    """Decode `latents` (N, C, h, w), `batch` at a time, to pictures (N, 3, H, W), about in [-1, 1]."""
    config = vae.config
    parts = [vae.decode(p / config.scaling_factor + config.shift_factor).sample for p in latents.split(batch)]
    return torch.cat(parts)


def tiled(pictures: Tensor, columns: int = 8) -> Tensor:
    """Tile pictures (N, 3, H, W) in [-1, 1] into one picture in [0, 1], row by row. White fills the last row."""
    columns = min(columns, len(pictures))
    missing = -len(pictures) % columns
    pictures = torch.cat([pictures, pictures.new_ones(missing, *pictures.shape[1:])])
    rows = [torch.cat(list(part), -1) for part in pictures.split(columns)]
    return (torch.cat(rows, -2) / 2 + 0.5).clamp(0, 1)


class TextConditioner:
    """The frozen text encoders: captions to SD3's token states (B, 24, 160) and pooled vectors (B, 160)."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        self.parts = [
            (
                CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True),
                pretrained(CLIPTextModelWithProjection, folder / f"text_encoder{suffix}").eval().to(device),
            )
            for suffix in ("", "_2")
        ]
        self.device = device
        self.width = sum(encoder.config.hidden_size for _, encoder in self.parts)
        self.pooled_width = sum(encoder.config.projection_dim for _, encoder in self.parts)

    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token states of the next-to-last layer, and pooled vectors, both encoders side by side."""
        return self.encode(self.tokens(captions))

    def tokens(self, captions: list[str]) -> list[torch.Tensor]:
        """Return each encoder's token ids (B, 24), on the processor."""
        return [tokenize(tokenizer, captions) for tokenizer, _ in self.parts]

    @torch.no_grad()
    def encode(self, tokens: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token states and pooled vectors of token ids."""
        outputs = [
            encoder(ids.to(self.device), output_hidden_states=True)
            for ids, (_, encoder) in zip(tokens, self.parts, strict=True)
        ]
        return (
            torch.cat([o.hidden_states[-2] for o in outputs], -1),
            torch.cat([o.text_embeds for o in outputs], -1),
        )


@dataclass(frozen=True)
class Pipeline:
    """Transformer, autoencoder and text encoders of a Stable Diffusion 3 checkpoint without T5, on one device."""

    transformer: Any
    vae: Any
    text: TextConditioner

    def draw(
        self, captions: list[str], noise: Tensor, schedule: Schedule, guidance: float = 1.0, batch: int = 32
    ) -> Tensor:
        """Denoise `noise` (N, C, H, W), one caption each, to latents of that shape. Guidance runs above 1."""
        made = []
        for start in range(0, len(captions), batch):
            part = captions[start : start + batch]
            guided = guidance > 1
            states, pooled = self.text([*([""] * len(part) * guided), *part])

            def velocity(
                latents: Tensor, level: Tensor, states: Tensor = states, pooled: Tensor = pooled, guided: bool = guided
            ) -> Tensor:
                copies = 1 + guided
                with mixed_precision(latents.device):
                    found = self.transformer(
                        hidden_states=latents.repeat(copies, 1, 1, 1),
                        encoder_hidden_states=states,
                        pooled_projections=pooled,
                        timestep=1000 * level.repeat(copies),
                        return_dict=False,
                    )[0].float()
                if not guided:
                    return found
                free, tied = found.chunk(2)
                return free + guidance * (tied - free)

            made.append(euler(velocity, noise[start : start + batch].to(states), schedule))
        return torch.cat(made)

    def decode(self, latents: Tensor, batch: int = 32) -> Tensor:
        """Return the pictures (N, 3, H, W), about in [-1, 1], of `latents`."""
        return decode(self.vae, latents, batch)


def shift_of(folder: Path) -> float | None:
    """Return the fixed shift of a checkpoint's scheduler. None if it is dynamic, or without a scheduler.

    Wan's scheduler UniPC calls it flow_shift. Raises TrainingError if the file is not valid JSON.
    """
    path = folder / "scheduler/scheduler_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise TrainingError(f"{path} is not valid JSON: {error}. Fetch that file again.") from None
    if said is None or said.get("use_dynamic_shifting"):
        return None
    return float(said.get("flow_shift") or said.get("shift") or 1.0)


def load_pipeline(folder: Path, device: torch.device) -> Pipeline:
    """Return the pipeline of a checkpoint or bundle directory, in float32. Raises TrainingError if loading fails."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    if not (folder / "transformer/config.json").is_file():
        raise TrainingError(f"{folder} has no transformer/config.json. Name a directory in diffusers format.")
    try:
        transformer, vae = (
            pretrained(kind, folder / part).eval().requires_grad_(False).to(device)
            for kind, part in ((SD3Transformer2DModel, "transformer"), (AutoencoderKL, "vae"))
        )
        text = TextConditioner(folder, device)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder} cannot be loaded: {error}. Name a directory in diffusers format.") from error
    if text.width != transformer.config.joint_attention_dim:
        raise TrainingError(
            f"{folder} has text of width {text.width} for a transformer that takes "
            f"{transformer.config.joint_attention_dim}: Segue does not draw models with T5 states here. "
            "Use diffusers for this one."
        )
    return Pipeline(transformer, vae, text)
