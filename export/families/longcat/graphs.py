"""LongCat-Image: a transformer on packed latents, an autoencoder, and the language half of Qwen2.5-VL.

Inputs and outputs are unpacked latents; the graphs do the packing and the position ids. Sources: diffusers'
LongCatImagePipeline and its model classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ..checks import unusable
from ..graph import WEIGHT, Graph, Port
from ..modules import FUSED_ATTENTION, Wrapper, autoencoder
from ..qwen3 import Rotary
from ..step import with_step
from .facts import PATCH, TOKENS


class _Transformer(Wrapper):
    def forward(self, hidden_states, encoder_hidden_states, timestep):  # type: ignore[no-untyped-def]
        batch, channels, height, width = hidden_states.shape
        rows, columns = height // PATCH, width // PATCH
        squares = hidden_states.reshape(batch, channels, rows, PATCH, columns, PATCH)
        packed = squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * PATCH**2)
        text = torch.arange(encoder_hidden_states.shape[1], dtype=torch.float32)
        row, column = (torch.arange(n, dtype=torch.float32) + TOKENS for n in (rows, columns))
        place = torch.stack([row[:, None].expand(rows, columns), column[None].expand(rows, columns)], -1)
        modality = torch.ones_like(place[..., :1])
        made = self.model(
            hidden_states=packed,
            encoder_hidden_states=encoder_hidden_states,
            timestep=timestep / 1000,
            img_ids=torch.cat([modality, place], -1).reshape(rows * columns, 3),
            txt_ids=torch.stack([torch.zeros_like(text), text, text], -1),
            return_dict=False,
        )[0]
        tokens = made.reshape(batch, rows, columns, channels, PATCH, PATCH)
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


class _TextEncoder(Wrapper):
    def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
        length = input_ids.shape[1]
        place = torch.arange(length)
        seen = (place[None, :] <= place[:, None])[None, None] & (attention_mask[:, None, None, :] > 0)
        return self.model.model.language_model(
            input_ids=input_ids, attention_mask={"full_attention": seen}, use_cache=False
        ).last_hidden_state


class _Rotary(Rotary):
    """Qwen2.5-VL's rotary embedding for text only, whose three positions are equal."""

    def forward(self, states, position_ids):  # type: ignore[no-untyped-def]
        return super().forward(states, position_ids[0])


def graphs(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
    """Return the five graphs of the checkpoint whose config.json files are `configs`, keyed by folder.

    Raises CheckpointError if a config lacks a key or holds a value that its class does not take.
    """
    try:
        return (
            text_encoder(configs["text_encoder"]),
            *with_step(transformer(configs["transformer"]), patch=PATCH, takes=takes),
            *autoencoder(configs["vae"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None


def text_encoder(config: dict[str, Any]) -> Graph:
    """Return the graph of Qwen2.5-VL's language model.

    input_ids and attention_mask int64 [batch, length] -> states [batch, length, width] after the last norm. Tokens
    attend to earlier tokens except padding; positions count padding as well.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    made = Qwen2_5_VLConfig(**config)
    text = made.text_config
    head = text.hidden_size // text.num_attention_heads

    def build() -> torch.nn.Module:
        model = Qwen2_5_VLForConditionalGeneration._from_config(made, attn_implementation="sdpa")
        model.model.language_model.rotary_emb = _Rotary(text.rope_parameters["rope_theta"], head)
        return model

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        shape = sizes["batch"], sizes["length"]
        mask = np.ones(shape, np.int64)
        for row, start in enumerate(rng.integers(2, shape[1], shape[0])):
            mask[row, start : shape[1] - 1] = 0  # padding stands between the prompt and the template's end
        return {"input_ids": rng.integers(0, text.vocab_size, shape), "attention_mask": mask}

    return Graph(
        component="text_encoder",
        folder="text_encoder",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=build,
        load=lambda path: Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True
        ),
        wrap=_TextEncoder,
        inputs=(Port("input_ids", "int64", ("batch", "length")), Port("attention_mask", "int64", ("batch", "length"))),
        outputs=(Port("states", WEIGHT, ("batch", "length", text.hidden_size)),),
        traced={"batch": 2, "length": 24},
        trials=({"batch": 1, "length": 31}, {"batch": 3, "length": 12}),
        feed=feed,
        buffer=lambda name: None,
        alias=lambda name: name.replace("model.language_model.", "model."),
    )


def transformer(config: dict[str, Any]) -> Graph:
    """Return the graph of LongCatImageTransformer2DModel.

    hidden_states [batch, channels, height, width] in latents, encoder_hidden_states [batch, text, width], timestep
    [batch] float32 (sigma times 1000) -> velocity, shaped as hidden_states. Height and width are even.
    """
    from diffusers import LongCatImageTransformer2DModel

    channels, joint = config["in_channels"] // PATCH**2, config["joint_attention_dim"]
    latents = (channels, "height", "width")

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        batch = sizes["batch"]
        return {
            "hidden_states": rng.standard_normal((batch, channels, sizes["height"], sizes["width"]), dtype=np.float32),
            "encoder_hidden_states": rng.standard_normal((batch, sizes["text"], joint), dtype=np.float32),
            "timestep": rng.uniform(0, 1000, batch).astype(np.float32),
        }

    return Graph(
        component="transformer",
        folder="transformer",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: LongCatImageTransformer2DModel.from_config(config),
        load=lambda folder: LongCatImageTransformer2DModel.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=True
        ),
        wrap=_Transformer,
        inputs=(
            Port("hidden_states", WEIGHT, ("batch", *latents)),
            Port("encoder_hidden_states", WEIGHT, ("batch", "text", joint)),
            Port("timestep", "float32", ("batch",)),
        ),
        outputs=(Port("velocity", WEIGHT, ("batch", *latents)),),
        traced={"batch": 2, "height": 8, "width": 12, "text": 24},
        trials=(
            {"batch": 1, "height": 6, "width": 10, "text": 31},
            {"batch": 3, "height": 10, "width": 4, "text": 11},
        ),
        feed=feed,
        buffer=lambda name: None,
    )
