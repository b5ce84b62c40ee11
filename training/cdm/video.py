"""The inputs of SwiftI2V's two stages in a distillation: latents, level and condition.

Stage I sees a whole window of a clip and its image. Stage II sees one segment at a time, in which only the targets are
noisy. Both are Wan's transformers and take 1000 t. Stage II takes one value for each latent frame.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrainingError
from ...runtime.bundle.segments import COMPRESSION, SegmentSpec, latent_frames
from ...runtime.sampling.motion import image_mask
from .names import DETAIL, MOTION

MOTION_STRIDE, DETAIL_STRIDE = 8, 16  # pixels for each latent, in Wan 2.1's and Wan 2.2's autoencoder
ADAPTED = tuple(f"{attention}.to_{name}" for attention in ("attn1", "attn2") for name in ("q", "k", "v", "out.0"))
SEGMENTS = SegmentSpec()


def motion_velocity(network: nn.Module, latents: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
    """Return Stage I's velocity of latents (B, C, f, h, w). "image", of that shape, is the image before grey frames."""
    mask = torch.from_numpy(image_mask(*latents.shape[2:])).to(latents)
    given = torch.cat([latents, mask.expand(len(latents), -1, -1, -1, -1), condition["image"]], 1)
    return network(given, 1000 * level, condition["states"], return_dict=False)[0]


def motion_shape(config: Any, *size: int) -> tuple[int, ...]:
    """Return the latents of a clip of (frames, height, width)."""
    frames, height, width = _three(size, MOTION)
    return config.out_channels, latent_frames(frames), height // MOTION_STRIDE, width // MOTION_STRIDE


def motion_beside(config: Any, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of Stage I's other inputs."""
    return {"image": latents}


def motion_lengths(config: Any, latents: tuple[int, ...], tokens: int) -> set[int]:
    """Return the lengths of attention: the clip's tokens and the text's."""
    return {math.prod(latents[1:]) // math.prod(config.patch_size), tokens}


def detail_velocity(network: nn.Module, latents: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
    """Return Stage II's velocity of a segment's targets (B, C, M, h, w).

    "context" (B, C, k, h, w) holds the image latent and the finished neighbours. "reference" (B, C, M + after, h, w) is
    the motion reference from the first target on. "positions" (B, k + M + after) numbers the frames in the clip.
    """
    context, reference = condition["context"], condition["reference"]
    first, made = context.shape[2], latents.shape[2]
    shown = torch.cat([context, latents, reference[:, :, made:]], 2)
    timesteps = level.new_zeros(len(level), shown.shape[2])
    timesteps[:, first : first + made] = 1000 * level[:, None]
    given = torch.cat([shown, torch.cat([context, reference], 2)], 1)
    velocity = network(given, timesteps, condition["states"], condition["positions"].long())
    return velocity[:, :, first : first + made]


def detail_shape(config: Any, *size: int) -> tuple[int, ...]:
    """Return the targets of a segment of (frames, height, width)."""
    frames, height, width = _three(size, DETAIL)
    return config.out_channels, -(-frames // COMPRESSION), height // DETAIL_STRIDE, width // DETAIL_STRIDE


def detail_beside(config: Any, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of Stage II's other inputs, for a segment with one neighbour before it and none after."""
    channels, made, height, width = latents
    context = 1 + SEGMENTS.before
    return {
        "context": (channels, context, height, width),
        "reference": (channels, made, height, width),
        "positions": (context + made,),
    }


def detail_lengths(config: Any, latents: tuple[int, ...], tokens: int) -> set[int]:
    """Return the lengths of attention: the whole window's tokens and the text's."""
    channels, made, *sides = latents
    return motion_lengths(config, (channels, 1 + SEGMENTS.before + made, *sides), tokens)


def text_shapes(config: Any, tokens: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of the text's states."""
    return {"states": (tokens, config.text_dim)}


def _three(size: tuple[int, ...], family: str) -> tuple[int, int, int]:
    if len(size) != 3:
        raise TrainingError(f"cdm.size = {list(size)}: {family} makes videos. Give [frames, height, width].")
    frames, height, width = size
    return frames, height, width
