"""Both stages of a SwiftI2V checkpoint in PyTorch, for many clips at a time, as evaluation uses them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import TrainingError
from ...export.families.wan.segment import SegmentTransformer
from ...runtime.bundle.manifest import Sampler
from ...runtime.bundle.segments import SegmentSpec
from ...runtime.sampling import motion
from ...runtime.sampling.noise import philox_normal
from ...runtime.sampling.schedule import Schedule
from ...runtime.videos.stage_one import DETAIL_NOISE, MOTION_NOISE
from ..loop.device import mixed_precision
from ..loop.networks import pretrained
from ..pictures.sampling import shift_of
from ..video.clips.latents import FrozenCodec
from ..video.clips.references import MotionModel, spliced
from ..video.windows import Window, generate

Drawn = Callable[[tuple[int, ...], int], Tensor]
"""drawn(shape of one sample, stream) to the noise of all (B, …); each stage has its own stream, as in the runtime."""


@dataclass(frozen=True)
class Noise:
    """Noise of clips, keyed by each clip's number: the batch size does not change it."""

    seed: int
    clips: Sequence[int]

    def __call__(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Return noise (B, …) float32 of samples of `shape`."""
        return torch.from_numpy(np.stack([philox_normal(shape, self.seed, clip, stream) for clip in self.clips]))


@dataclass(frozen=True)
class Settings:
    """The settings of sampling, from a checkpoint's segue.json and scheduler."""

    frames: int
    scale: int
    text_tokens: int
    segments: SegmentSpec
    motion: Schedule
    motion_guidance: float
    detail: Schedule


class VideoModel:
    """Both stages of a checkpoint or bundle."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raise TrainingError if `folder` holds no SwiftI2V model."""
        if not (folder / "detail_transformer/config.json").is_file():
            raise TrainingError(f"{folder} has no detail_transformer. Name a checkpoint with both stages, or a bundle.")
        self.settings, self.device = settings_of(folder), device
        self.motion = MotionModel(folder, self.settings.text_tokens, device)
        self.detail: Any = pretrained(SegmentTransformer, folder / "detail_transformer")
        self.detail.eval().requires_grad_(False).to(device)
        self.codec = FrozenCodec(folder, device, "detail_vae")

    def low(self, image: Tensor, captions: list[str], noise: Drawn) -> Tensor:
        """Return Stage I's frames (B, 3, F, h, w) for the first frames `image` (B, 3, h, w)."""
        still = image[:, :, None]
        grey = torch.zeros(*image.shape[:2], self.settings.frames - 1, *image.shape[2:], device=image.device)
        given = self.motion.codec.encode(torch.cat([still, grey], 2))
        levels = torch.from_numpy(self.settings.motion.sigmas).to(given)[:, None].expand(-1, len(image))
        latents = self.motion.denoise(
            noise(tuple(given.shape[1:]), MOTION_NOISE).to(given),
            given,
            captions,
            levels,
            self.settings.motion_guidance,
        )
        return self.motion.codec.decode(latents).clamp(-1, 1)

    def high(self, low: Tensor, image: Tensor, captions: list[str], noise: Drawn) -> Tensor:
        """Return Stage II's frames (B, 3, F, H, W) for Stage I's (B, 3, F, h, w) and the image (B, 3, H, W)."""
        reference = self.codec.encode(spliced(low, image))
        text = self.motion.text(captions)

        def velocity(given: Window) -> Tensor:
            with mixed_precision(self.device):
                return self.detail(given.latents, given.timesteps, text, given.positions).float()

        latents = generate(
            velocity, reference[:, :, :1], reference, noise(tuple(reference.shape[1:]), DETAIL_NOISE).to(reference),
            self.settings.segments, self.settings.detail,
        )  # fmt: skip
        return self.codec.decode(latents).clamp(-1, 1)


def settings_of(folder: Path) -> Settings:
    """Return the settings of the model in `folder`. Raises TrainingError if its files lack them."""
    try:
        said = json.loads((folder / "segue.json").read_text())
        shift = shift_of(folder) or 1.0
        video = said["video"]

        def schedule(table: dict[str, Any], prefix: str) -> Schedule:
            sigmas = tuple(table.get(f"{prefix}sigmas") or ())
            return motion.schedule(Sampler("flow-match-euler", shift, 1000, table[f"{prefix}steps"], 1.0, sigmas))

        return Settings(
            video["frames"], video["scale"], video["text_tokens"],
            SegmentSpec(video["targets"], video["before"], video["after"]),
            schedule(video, "motion_"), video["motion_guidance"], schedule(said, ""),
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{folder} has no video settings ({type(error).__name__}: {error}). Name a checkpoint that "
            "segue train wrote for [detail]."
        ) from None
