"""Stable Diffusion XL: a UNet that predicts noise, an autoencoder and two CLIP text encoders.

Sources: diffusers' StableDiffusionXLPipeline and its model classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ....runtime.bundle.families import GUIDANCE
from ..checks import unusable
from ..graph import WEIGHT, Graph, Port
from ..modules import FUSED_ATTENTION, Wrapper, autoencoder
from ..modules import text_encoder as clip
from ..step import with_step


class _UNet(Wrapper):
    def forward(self, hidden_states, encoder_hidden_states, text_embeds, time_ids, timestep, guidance=None):  # type: ignore[no-untyped-def]
        return self.model(
            hidden_states,
            timestep,
            encoder_hidden_states,
            timestep_cond=None if guidance is None else self._embedded(guidance).to(hidden_states.dtype),
            # both in float32, as the sine table of the sizes is: a Concat takes one type
            added_cond_kwargs={"text_embeds": text_embeds.float(), "time_ids": time_ids},
            return_dict=False,
        )[0]

    def _embedded(self, guidance):  # type: ignore[no-untyped-def]
        """Return the embedding of guidance (Meng et al. 2023, "On Distillation of Guided Diffusion Models")."""
        half = self.model.config.time_cond_proj_dim // 2
        rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000) / (half - 1)))
        angles = 1000 * (guidance - 1)[:, None] * rates[None]
        return torch.cat([angles.sin(), angles.cos()], 1)


class _TextEncoder(Wrapper):
    def forward(self, input_ids):  # type: ignore[no-untyped-def]
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return self.model(input_ids, position_ids=positions, output_hidden_states=True).hidden_states[-2]


def graphs(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
    """Return the six graphs of the checkpoint whose config.json files are `configs`, keyed by folder.

    Raises CheckpointError if a config lacks a key or holds a value that its class does not take.
    """
    try:
        return (
            text_encoder(configs["text_encoder"]),
            clip("text_encoder_2", configs["text_encoder_2"]),
            *with_step(unet(configs["unet"]), takes=takes),
            *autoencoder(configs["vae"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None


def text_encoder(config: dict[str, Any]) -> Graph:
    """Return the graph of the first encoder, a CLIPTextModel: input_ids -> hidden_states, the layer before the last."""
    from transformers import CLIPTextConfig, CLIPTextModel

    whole = clip("text_encoder", {**config, "projection_dim": config.get("projection_dim", 1)})
    return dataclasses.replace(
        whole,
        build=lambda: CLIPTextModel._from_config(CLIPTextConfig(**config), attn_implementation="sdpa"),
        load=lambda path: CLIPTextModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True),
        wrap=_TextEncoder,
        outputs=whole.outputs[:1],
        alias=lambda name: name if name.startswith("text_model.") else f"text_model.{name}",
    )


def unet(config: dict[str, Any]) -> Graph:
    """Return the graph of SDXL's UNet2DConditionModel.

    hidden_states [batch, channels, height, width], encoder_hidden_states [batch, text, width], text_embeds [batch,
    pooled], time_ids [batch, 6], timestep [batch] float32 -> noise, shaped as hidden_states. Height and width are
    multiples of 2**n if the UNet halves them n times. A UNet with
    time_cond_proj_dim also takes guidance, float32 [batch].
    """
    from diffusers import UNet2DConditionModel

    channels, cross = config["in_channels"], config["cross_attention_dim"]
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    unit = 2 ** (len(config["block_out_channels"]) - 1)
    latents = (channels, "height", "width")
    embedded = bool(config.get("time_cond_proj_dim"))

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        batch, height, width = sizes["batch"], sizes["height"], sizes["width"]
        return {
            "hidden_states": rng.standard_normal((batch, channels, height, width), dtype=np.float32),
            "encoder_hidden_states": rng.standard_normal((batch, sizes["text"], cross), dtype=np.float32),
            "text_embeds": rng.standard_normal((batch, pooled), dtype=np.float32),
            "time_ids": np.tile(np.array([8 * height, 8 * width, 0, 0, 8 * height, 8 * width], np.float32), (batch, 1)),
            "timestep": rng.uniform(0, 1000, batch).astype(np.float32),
            **({GUIDANCE: rng.uniform(1, 10, batch).astype(np.float32)} if embedded else {}),
        }

    return Graph(
        component="unet",
        folder="unet",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: UNet2DConditionModel.from_config(config),
        load=lambda folder: UNet2DConditionModel.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=True
        ),
        wrap=_UNet,
        inputs=(
            Port("hidden_states", WEIGHT, ("batch", *latents)),
            Port("encoder_hidden_states", WEIGHT, ("batch", "text", cross)),
            Port("text_embeds", WEIGHT, ("batch", pooled)),
            Port("time_ids", "float32", ("batch", 6)),
            Port("timestep", "float32", ("batch",)),
            *((Port(GUIDANCE, "float32", ("batch",)),) if embedded else ()),
        ),
        outputs=(Port("noise", WEIGHT, ("batch", config.get("out_channels") or channels, "height", "width")),),
        traced={"batch": 2, "height": 4 * unit, "width": 6 * unit, "text": 24},
        trials=(
            {"batch": 1, "height": 3 * unit, "width": 5 * unit, "text": 31},
            {"batch": 3, "height": 5 * unit, "width": 2 * unit, "text": 11},
        ),
        feed=feed,
        buffer=lambda name: None,
    )
