"""Z-Image's transformer on a batch of pictures of one size, without lists and complex numbers.

The class of diffusers takes lists of pictures. It pads each to a multiple of 32 tokens with a learned token, and the
model attends to these pads. For pictures of one size it uses no mask, so the submodules can be called directly.
Source: diffusers 0.42.1's ZImageTransformer2DModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..graph import WEIGHT, Graph, Port
from ..modules import FUSED_ATTENTION, Wrapper, normal
from .facts import GROUP, PATCH

KEY = f"{PATCH}-1"  # of the layers for patches of one frame
TRAIN_TIMESTEPS = 1000
# In fp16 the published weights overflow before the last matrix of an attention and of a feed-forward block. A norm
# follows both, so the numbers are divided first. A power of two changes no bit in the wider formats
DIVISOR = 32


class _Attention:
    """Attention with a rotary embedding of real pairs; it has no weights of its own."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, freqs_cis=None):  # type: ignore[no-untyped-def]
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (a.transpose(1, 2) for a in (_turned(query, *freqs_cis), _turned(key, *freqs_cis), value))
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](seen.transpose(1, 2).flatten(2) / DIVISOR)


def _gated(gate, states):  # type: ignore[no-untyped-def]
    return torch.nn.functional.silu(gate) * (states / DIVISOR)


class _Transformer(Wrapper):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for block in (*model.noise_refiner, *model.context_refiner, *model.layers):
            block.attention.set_processor(_Attention())
            block.feed_forward._forward_silu_gating = _gated
            for norm in (block.attention_norm2, block.ffn_norm2):
                norm.eps = model.config.norm_eps / DIVISOR**2

    def forward(self, hidden_states, encoder_hidden_states, timestep):  # type: ignore[no-untyped-def]
        model = self.model
        batch, channels, height, width = hidden_states.shape
        rows, columns = height // PATCH, width // PATCH
        count = rows * columns
        time = model.t_embedder((TRAIN_TIMESTEPS - timestep) / TRAIN_TIMESTEPS * model.t_scale).type_as(hidden_states)

        squares = hidden_states.reshape(batch, channels, rows, PATCH, columns, PATCH)
        tokens = squares.permute(0, 2, 4, 3, 5, 1).reshape(batch, count, channels * PATCH**2)
        picture, place = _padded(model.all_x_embedder[KEY](tokens), model.x_pad_token, count)
        text, word = _padded(
            model.cap_embedder(encoder_hidden_states), model.cap_pad_token, encoder_hidden_states.shape[1]
        )
        near, real = place.clamp(max=count - 1), place < count
        # A division of places by a size that is free does not translate
        row = torch.arange(rows)[:, None].expand(rows, columns).reshape(count)[near]
        column = torch.arange(columns)[None].expand(rows, columns).reshape(count)[near]
        nothing = torch.zeros_like(word)
        of_text = self._turns(word + 1, nothing, nothing)
        of_picture = self._turns(*(a * real for a in (torch.ones_like(place) * (word.shape[0] + 1), row, column)))

        for layer in model.noise_refiner:
            picture = layer(picture, None, of_picture, time)
        for layer in model.context_refiner:
            text = layer(text, None, of_text)
        both = torch.cat([picture, text], 1)
        turns = tuple(torch.cat(pair) for pair in zip(of_picture, of_text, strict=True))
        for layer in model.layers:
            both = layer(both, None, turns, time)
        made = model.all_final_layer[KEY](both[:, :count], c=time)
        tokens = made.reshape(batch, rows, columns, PATCH, PATCH, channels)
        return -tokens.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)

    def _turns(self, *places):  # type: ignore[no-untyped-def]
        """Return cosine and sine, float32 [tokens, half a head], of the places on three axes."""
        angles = []
        for place, size in zip(places, self.model.axes_dims, strict=True):
            exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
            angles.append((place.double()[:, None] / self.model.rope_theta**exponents).float())
        angle = torch.cat(angles, -1)
        return angle.cos(), angle.sin()


def _padded(tokens, pad, count):  # type: ignore[no-untyped-def]
    """Return tokens [batch, count, width], padded with `pad` to a multiple of GROUP, and the number of each place."""
    place = torch.arange((count + GROUP - 1) // GROUP * GROUP)
    # The pads may be none, and a size must not be 0, so every place takes the token nearest to it
    found = tokens[:, place.clamp(max=count - 1)]
    return torch.where((place >= count)[None, :, None], pad[None], found), place


def _turned(states, cos, sin):  # type: ignore[no-untyped-def]
    """Return states [batch, tokens, heads, head] turned by an angle for each pair of numbers."""
    a, b = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(states)


def transformer(config: dict[str, Any]) -> Graph:
    """Return the graph of ZImageTransformer2DModel.

    hidden_states [batch, channels, height, width] in latents, encoder_hidden_states [batch, text, width] of the real
    tokens alone, timestep [batch] float32 (sigma times 1000) -> velocity, shaped as hidden_states. Height and width are
    even.
    """
    from diffusers import ZImageTransformer2DModel

    channels, width = config["in_channels"], config["cap_feat_dim"]
    latents = (channels, "height", "width")

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        batch = sizes["batch"]
        return {
            "hidden_states": normal(rng, (batch, channels, sizes["height"], sizes["width"])),
            "encoder_hidden_states": normal(rng, (batch, sizes["text"], width)),
            "timestep": rng.uniform(0, TRAIN_TIMESTEPS, batch).astype(np.float32),
        }

    return Graph(
        component="transformer",
        folder="transformer",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: ZImageTransformer2DModel.from_config(config),
        load=lambda folder: ZImageTransformer2DModel.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=True
        ),
        wrap=_Transformer,
        inputs=(
            Port("hidden_states", WEIGHT, ("batch", *latents)),
            Port("encoder_hidden_states", WEIGHT, ("batch", "text", width)),
            Port("timestep", "float32", ("batch",)),
        ),
        outputs=(Port("velocity", WEIGHT, ("batch", *latents)),),
        traced={"batch": 2, "height": 8, "width": 12, "text": 24},
        # 32 picture tokens and 33 of text; 40 and 32
        trials=(
            {"batch": 1, "height": 16, "width": 8, "text": 33},
            {"batch": 3, "height": 10, "width": 16, "text": 32},
        ),
        feed=feed,
        buffer=lambda name: None,
    )
