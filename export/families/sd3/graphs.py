"""Stable Diffusion 3: a transformer, an autoencoder and two CLIP text encoders, as diffusers lays them out.

Sources: diffusers' StableDiffusion3Pipeline (which outputs of the encoders are used, and how) and its model classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ....runtime.bundle.families import T5
from ..checks import unusable
from ..graph import WEIGHT, Graph, Port
from ..modules import FUSED_ATTENTION, Wrapper, autoencoder, normal, t5, text_encoder
from ..step import with_step


class _Transformer(Wrapper):
    def forward(self, hidden_states, encoder_hidden_states, pooled_projections, timestep):  # type: ignore[no-untyped-def]
        return self.model(hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False)[0]


def graphs(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
    """Return the graphs of the checkpoint whose config.json files are `configs`, keyed by folder: six, seven with T5.

    Raises CheckpointError if a config lacks a key or holds a value that its class does not take.
    """
    try:
        return (
            text_encoder("text_encoder", configs["text_encoder"]),
            text_encoder("text_encoder_2", configs["text_encoder_2"]),
            *([t5(configs[T5])] if T5 in configs else []),
            *with_step(transformer(configs["transformer"]), takes=takes),
            *autoencoder(configs["vae"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None


def transformer(config: dict[str, Any]) -> Graph:
    """Return the graph of SD3Transformer2DModel.

    hidden_states [batch, channels, height, width], encoder_hidden_states [batch, text, joint], pooled_projections
    [batch, pooled], timestep [batch] float32 (sigma times 1000) -> velocity, shaped as hidden_states. Height and
    width are in latents, multiples of the patch.
    """
    from diffusers import SD3Transformer2DModel

    channels, patch = config["in_channels"], config["patch_size"]
    joint, pooled = config["joint_attention_dim"], config["pooled_projection_dim"]
    size = config["pos_embed_max_size"]
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    latents = (channels, "height", "width")

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        batch = sizes["batch"]
        return {
            "hidden_states": normal(rng, (batch, channels, sizes["height"], sizes["width"])),
            "encoder_hidden_states": normal(rng, (batch, sizes["text"], joint)),
            "pooled_projections": normal(rng, (batch, pooled)),
            "timestep": rng.uniform(0, 1000, batch).astype(np.float32),
        }

    def buffer(name: str) -> np.ndarray | None:
        if name != "pos_embed.pos_embed":
            return None
        from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid

        # equals get_2d_sincos_pos_embed, which computes both axes for every place and takes 1.6 GB for SD3-Medium
        places = torch.arange(size, dtype=torch.float32) / (size / (config["sample_size"] // patch))
        axis = get_1d_sincos_pos_embed_from_grid(inner // 2, places, output_type="pt").float()
        across, down = axis[None].expand(size, size, -1), axis[:, None].expand(size, size, -1)
        return torch.cat([across, down], -1).reshape(1, size**2, inner).numpy()

    # The larger side of a trial may not exceed the positional table.
    tall, wide = (min(n, size) * patch for n in (6, 10))
    return Graph(
        component="transformer",
        folder="transformer",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: SD3Transformer2DModel.from_config(config),
        load=lambda folder: SD3Transformer2DModel.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=True
        ),
        wrap=_Transformer,
        inputs=(
            Port("hidden_states", WEIGHT, ("batch", *latents)),
            Port("encoder_hidden_states", WEIGHT, ("batch", "text", joint)),
            Port("pooled_projections", WEIGHT, ("batch", pooled)),
            Port("timestep", "float32", ("batch",)),
        ),
        outputs=(Port("velocity", WEIGHT, ("batch", config.get("out_channels") or channels, "height", "width")),),
        traced={"batch": 2, "height": 4 * patch, "width": 8 * patch, "text": 24},
        trials=(
            {"batch": 1, "height": wide, "width": tall, "text": 31},
            {"batch": 3, "height": tall, "width": wide, "text": 11},
        ),
        feed=feed,
        buffer=buffer,
    )
