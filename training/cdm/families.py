"""The table of the transformers that CDM distils: their inputs, LoRA's linears, the blocks for FSDP2.

A velocity is eps - x0 at level t. Stable Diffusion 3 takes 2-D latents and 1000 t. LongCat-Image takes packed latents
with position ids, and t: its transformer multiplies by 1000. `video.py` has SwiftI2V's stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrainingError
from . import names, video

Condition = dict[str, Tensor]
"""The condition of B samples: "states" (B, tokens, width) of the text, and the family's other inputs."""

LONGCAT_TEXT = 512  # LongCat-Image pads or cuts every prompt to this number of tokens


def joint_length(config: Any, latents: tuple[int, ...], tokens: int) -> set[int]:
    """Return the length of joint attention over picture and text. Packed latents are tokens already."""
    return {tokens + (latents[0] if len(latents) == 2 else math.prod(latents[1:]) // config.patch_size**2)}


@dataclass(frozen=True)
class Family:
    """What differs between families. Every function is pure."""

    model: str  # the class of diffusers
    blocks: tuple[str, ...]  # classes that FSDP2 shards one by one
    adapted: tuple[str, ...]  # linears that LoRA adapts, as in the paper, by the ends of their names
    velocity: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    shape: Callable[..., tuple[int, ...]]  # (config, [frames,] height, width in pixels) to one sample's latents
    text: Callable[[Any, int], dict[str, tuple[int, ...]]]  # (config, tokens) to the shapes that guidance replaces
    beside: Callable[[Any, tuple[int, ...]], dict[str, tuple[int, ...]]] = lambda config, latents: {}  # other inputs
    part: str = "transformer"  # the checkpoint's folder of the network
    lengths: Callable[[Any, tuple[int, ...], int], set[int]] = joint_length  # (config, latents, tokens): of attention

    def network_class(self) -> Any:
        """Return the class of the network, from diffusers or Segue."""
        import diffusers

        if self.model == "SegmentTransformer":
            from ...export.families.wan.segment import SegmentTransformer

            return SegmentTransformer
        return getattr(diffusers, self.model)


def _sd3_velocity(network: nn.Module, latents: Tensor, level: Tensor, condition: Condition) -> Tensor:
    return network(
        hidden_states=latents,
        encoder_hidden_states=condition["states"],
        pooled_projections=condition["pooled"],
        timestep=1000 * level,
        return_dict=False,
    )[0]


def _sd3_shape(config: Any, height: int, width: int) -> tuple[int, ...]:
    return config.in_channels, height // 8, width // 8


def _sd3_text(config: Any, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"states": (tokens, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}


def _longcat_velocity(network: nn.Module, latents: Tensor, level: Tensor, condition: Condition) -> Tensor:
    states = condition["states"]
    return network(
        hidden_states=latents,
        encoder_hidden_states=states,
        timestep=level,
        img_ids=square_ids(latents.shape[1]).to(latents.device),
        txt_ids=text_ids(states.shape[1]).to(latents.device),
        return_dict=False,
    )[0]


def _longcat_shape(config: Any, height: int, width: int) -> tuple[int, ...]:
    if height != width:
        raise TrainingError(
            f"cdm.size = [{height}, {width}]: LongCat-Image needs square pictures here. Give two equal sides."
        )
    return (height // 16) * (width // 16), config.in_channels


def _longcat_text(config: Any, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"states": (tokens, config.joint_attention_dim)}


def text_ids(tokens: int) -> Tensor:
    """Return LongCat-Image's position ids (tokens, 3) of text: modality 0, then the token's index twice."""
    place = torch.arange(tokens, dtype=torch.float32)
    return torch.stack([torch.zeros(tokens), place, place], 1)


def square_ids(tokens: int) -> Tensor:
    """Return LongCat-Image's position ids (tokens, 3) of a square picture: modality 1, row, column, after the text."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise TrainingError(f"{tokens} packed latents are not a square. Give a square size, a multiple of 16 px.")
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) + LONGCAT_TEXT,) * 2, indexing="ij")
    return torch.stack([torch.ones(tokens), row.flatten(), column.flatten()], 1)


_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")

FAMILIES = {
    names.SD3: Family(
        model="SD3Transformer2DModel",
        blocks=("JointTransformerBlock",),
        adapted=(*_ATTENTION, *_ADDED),
        velocity=_sd3_velocity,
        shape=_sd3_shape,
        text=_sd3_text,
    ),
    names.LONGCAT: Family(
        model="LongCatImageTransformer2DModel",
        blocks=("LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"),
        adapted=(*_ATTENTION, *_ADDED),
        velocity=_longcat_velocity,
        shape=_longcat_shape,
        text=_longcat_text,
    ),
    names.MOTION: Family(
        model="WanTransformer3DModel",
        blocks=("WanTransformerBlock",),
        adapted=video.ADAPTED,
        velocity=video.motion_velocity,
        shape=video.motion_shape,
        text=video.text_shapes,
        beside=video.motion_beside,
        lengths=video.motion_lengths,
    ),
    names.DETAIL: Family(
        model="SegmentTransformer",
        blocks=("WanTransformerBlock",),
        adapted=video.ADAPTED,
        velocity=video.detail_velocity,
        shape=video.detail_shape,
        text=video.text_shapes,
        beside=video.detail_beside,
        part="detail_transformer",
        lengths=video.detail_lengths,
    ),
}


def find_family(name: str) -> Family:
    """Return the family of that name. Raises TrainingError for an unknown name."""
    if name not in FAMILIES:
        raise TrainingError(f"there is no family {name!r}. Name one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]
