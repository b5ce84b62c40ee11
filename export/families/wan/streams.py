"""Wan's causal autoencoders as streams: one latent frame per call, with the caches as explicit tensors.

diffusers' AutoencoderKLWan processes a clip one latent frame at a time, and keeps the last frames before each
convolution in an internal list. Here the list is input and output, so that one graph decodes a clip of any length:
`first` takes the first latent frame (one video frame), `next` each further one (four).

A cache is (batch, channels, 1 or 2, height, width). After the first call diffusers keeps one frame instead of two, or
only a mark. Here zeros in front stand for both, because its convolutions pad with zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn

from ....runtime.bundle.segments import COMPRESSION


@dataclass(frozen=True)
class Cache:
    """The size of one cache; `scale` is the ratio of its sides to those of the half's input."""

    channels: int
    frames: int
    scale: Fraction


class Stream(nn.Module, ABC):
    """One half of an AutoencoderKLWan, `first` or `next`; `caches` are the sizes of its caches."""

    part: str
    model: Any

    def __init__(self, model: nn.Module, first: bool) -> None:
        super().__init__()
        self.model, self.first = model, first
        with torch.no_grad():
            self.slots = self._slots()
        self.caches = tuple(slot for slot in self.slots if slot)

    def forward(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Return the output for `frames`, then the caches for the next call."""
        slots: list[Any] = [None] * len(self.slots)
        if not self.first:
            held = iter(caches)
            slots = [next(held) if size else None for size in self.slots]
        made = self._run(frames, slots)
        packed: list[Tensor] = []
        for slot, size in zip(slots, self.slots, strict=True):
            if size:
                packed.append(_padded(slot, size.frames) if isinstance(slot, Tensor) else torch.zeros_like(packed[-1]))
        return (made, *packed)

    @abstractmethod
    def _run(self, frames: Tensor, slots: list[Any]) -> Tensor:
        """Return the half's output for `frames`, and write the caches for the next call to `slots`."""

    @abstractmethod
    def _sample(self, latent: int) -> Tensor:
        """Return the smallest input for that latent frame of a clip."""

    def _slots(self) -> list[Cache | None]:
        """Return the cache of each slot, None for an unused slot."""
        slots: list[Any] = [None] * self.model._cached_conv_counts[self.part]
        for latent in range(2):  # the second call fills the slots that the first call only marks
            sample = self._sample(latent)
            self._run(sample, slots)
        side = sample.shape[-1]
        return [
            Cache(slot.shape[1], slot.shape[2], Fraction(slot.shape[-1], side)) if isinstance(slot, Tensor) else None
            for slot in slots
        ]


class Decode(Stream):
    """latents (batch, channels, 1, height, width), as in the model's decode -> pixels in [-1, 1]."""

    part = "decoder"

    def _run(self, frames: Tensor, slots: list[Any]) -> Tensor:
        first = slots[0] is None
        hidden = self.model.post_quant_conv(frames)
        pixels = self.model.decoder(hidden, feat_cache=slots, feat_idx=[0], first_chunk=first)
        if self.model.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=self.model.config.patch_size)
        return pixels.clamp(-1, 1)

    def _sample(self, latent: int) -> Tensor:
        weight = self.model.post_quant_conv.weight
        return weight.new_zeros(1, self.model.config.z_dim, 1, 2, 2)


class Encode(Stream):
    """pixels (batch, 3, 1 or 4, height, width) in [-1, 1] -> latents, the mean of the posterior, one latent frame."""

    part = "encoder"

    def _run(self, frames: Tensor, slots: list[Any]) -> Tensor:
        if self.model.config.patch_size is not None:
            frames = patchify(frames, patch_size=self.model.config.patch_size)
        hidden = self.model.quant_conv(self.model.encoder(frames, feat_cache=slots, feat_idx=[0]))
        return hidden[:, : self.model.config.z_dim]

    def _sample(self, latent: int) -> Tensor:
        side = 2 * self.model.spatial_compression_ratio
        weight = self.model.quant_conv.weight
        return weight.new_zeros(1, 3, COMPRESSION if latent else 1, side, side)


def _padded(cache: Tensor, frames: int) -> Tensor:
    return F.pad(cache, (0, 0, 0, 0, frames - cache.shape[2], 0))
