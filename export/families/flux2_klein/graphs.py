"""FLUX.2-klein: a transformer on normalised squares of latents and reference pictures, its autoencoder, and Qwen3.

One graph serves pictures from text alone and with any number of reference pictures. Source: diffusers'
Flux2KleinPipeline and its model classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from .. import qwen3
from ..checks import unusable
from ..graph import WEIGHT, Graph, Port
from ..modules import FUSED_ATTENTION, PLAIN, Wrapper, normal
from ..step import with_step
from .facts import SQUARE, STATES

DOWN = 64.0  # a power of two, which changes no bits of a float32


class _Transformer(Wrapper):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        # Qwen3's states may pass float16's range. The layer that takes them has no bias, so they can be scaled down
        self.model.context_embedder.register_forward_hook(lambda module, given, made: made * DOWN)

    def forward(self, hidden_states, encoder_hidden_states, timestep, reference, places):  # type: ignore[no-untyped-def]
        batch, channels, rows, columns = hidden_states.shape
        count = rows * columns
        row, column = (torch.arange(n, dtype=torch.float32) for n in (rows, columns))
        text = torch.arange(encoder_hidden_states.shape[1], dtype=torch.float32)
        place = torch.stack([row[:, None].expand(rows, columns), column[None].expand(rows, columns)], -1)
        place = torch.nn.functional.pad(place.reshape(count, 2), (1, 1))
        packed = hidden_states.reshape(batch, channels, count).transpose(1, 2)
        # The class rounds the timestep to its weights' dtype, by up to 0.2 in float16 and 2 in bfloat16
        exact = self.model.time_guidance_embed.time_proj.register_forward_pre_hook(lambda module, given: (timestep,))
        made = self.model(
            hidden_states=torch.cat([packed, reference], 1),
            encoder_hidden_states=(encoder_hidden_states / DOWN).to(hidden_states.dtype),
            timestep=timestep / 1000,
            img_ids=torch.cat([place, places[0]], 0),
            txt_ids=torch.nn.functional.pad(text[:, None], (3, 0)),
            guidance=None,
            return_dict=False,
        )[0]
        exact.remove()
        return made[:, :count].transpose(1, 2).reshape(batch, channels, rows, columns)


class _Vae(Wrapper):
    def statistics(self):  # type: ignore[no-untyped-def]
        """Return the mean and the deviation of each channel of a square, [1, channels, 1, 1]."""
        mean, variance = (of[None, :, None, None] for of in (self.model.bn.running_mean, self.model.bn.running_var))
        return mean, torch.sqrt(variance + self.model.config.batch_norm_eps)


class _Decoder(_Vae):
    def forward(self, latents):  # type: ignore[no-untyped-def]
        mean, deviation = self.statistics()
        batch, channels, height, width = latents.shape
        squares = (latents * deviation + mean).reshape(batch, channels // SQUARE**2, SQUARE, SQUARE, height, width)
        plane = squares.permute(0, 1, 4, 2, 5, 3)
        plane = plane.reshape(batch, channels // SQUARE**2, SQUARE * height, SQUARE * width)
        return self.model.decode(plane, return_dict=False)[0]


class _Encoder(_Vae):
    def forward(self, pixels):  # type: ignore[no-untyped-def]
        mean, deviation = self.statistics()
        plane = self.model.encode(pixels, return_dict=False)[0].mean
        batch, channels, height, width = plane.shape
        squares = plane.reshape(batch, channels, height // SQUARE, SQUARE, width // SQUARE, SQUARE)
        squares = squares.permute(0, 1, 3, 5, 2, 4)
        squares = squares.reshape(batch, channels * SQUARE**2, height // SQUARE, width // SQUARE)
        return (squares - mean) / deviation


def graphs(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
    """Return the five graphs of the checkpoint whose config.json files are `configs`, keyed by folder.

    Raises CheckpointError if a config lacks a key or holds a value that its class does not take.
    """
    try:
        return (
            qwen3.text_encoder(configs["text_encoder"], STATES, masked=True),
            *with_step(transformer(configs["transformer"]), takes=takes),
            *autoencoder(configs["vae"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None


def transformer(config: dict[str, Any]) -> Graph:
    """Return the graph of Flux2Transformer2DModel.

    hidden_states [batch, channels, height, width] in latents, encoder_hidden_states float32 [batch, text, width],
    timestep [batch] float32 (sigma times 1000), reference [batch, references, channels] and places float32 [batch,
    references, 4] -> velocity, shaped as hidden_states. `references` tokens of reference pictures follow those of the
    picture, and may be 0. A place is (10 + 10 * number of the picture, row, column, 0), equal in the whole batch.
    """
    from diffusers import Flux2Transformer2DModel

    channels, joint = config["in_channels"], config["joint_attention_dim"]
    latents = ("batch", channels, "height", "width")

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        batch, count = sizes["batch"], sizes["references"]
        places = np.zeros((batch, count, 4), np.float32)
        places[..., 0] = 10
        places[..., 1], places[..., 2] = np.divmod(np.arange(count), 3)
        return {
            "hidden_states": normal(rng, (batch, channels, sizes["height"], sizes["width"])),
            "encoder_hidden_states": normal(rng, (batch, sizes["text"], joint)),
            "timestep": rng.uniform(0, 1000, batch).astype(np.float32),
            "reference": normal(rng, (batch, count, channels)),
            "places": places,
        }

    return Graph(
        component="transformer",
        folder="transformer",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: Flux2Transformer2DModel.from_config(config),
        load=lambda folder: Flux2Transformer2DModel.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=True
        ),
        wrap=_Transformer,
        inputs=(
            Port("hidden_states", WEIGHT, latents),
            Port("encoder_hidden_states", "float32", ("batch", "text", joint)),
            Port("timestep", "float32", ("batch",)),
            Port("reference", WEIGHT, ("batch", "references", channels)),
            Port("places", "float32", ("batch", "references", 4)),
        ),
        outputs=(Port("velocity", WEIGHT, latents),),
        traced={"batch": 2, "height": 4, "width": 6, "text": 24, "references": 10},
        trials=(
            {"batch": 1, "height": 5, "width": 3, "text": 31, "references": 7},
            {"batch": 3, "height": 2, "width": 7, "text": 11, "references": 0},
        ),
        feed=feed,
        buffer=lambda name: None,
    )


def autoencoder(config: dict[str, Any]) -> tuple[Graph, Graph]:
    """Return the decoder's and the encoder's graph of an AutoencoderKLFlux2; both point into the same weights.

    A latent is a square of 2 x 2 of the autoencoder's, normalised by the statistics in its file. Decoder: latents
    [batch, channels, height, width] -> pixels [batch, 3, factor * height, factor * width], about -1 to 1. Encoder:
    pixels -> latents, the mean of the posterior.
    """
    from diffusers import AutoencoderKLFlux2

    channels = SQUARE**2 * config["latent_channels"]
    factor = SQUARE * 2 ** (len(config["block_out_channels"]) - 1)
    colours = (config.get("in_channels", 3), config.get("out_channels", 3))

    def build(drop: tuple[str, ...]) -> torch.nn.Module:
        model = AutoencoderKLFlux2.from_config(config)
        for name in drop:  # this graph has only half of the model
            delattr(model, name)
        return model

    def part(name: str, wrap: Any, drop: tuple[str, ...], given: Port, made: Port, scale: int) -> Graph:
        return Graph(
            component=f"vae_{name}",
            folder="vae",
            file=f"{name}.onnx",
            opset=PLAIN,
            build=lambda: build(drop),
            load=lambda folder: AutoencoderKLFlux2.from_pretrained(
                folder, torch_dtype=torch.float32, use_safetensors=True
            ),
            wrap=wrap,
            inputs=(given,),
            outputs=(made,),
            traced={"batch": 2, "height": 4 * scale, "width": 6 * scale},
            trials=(
                {"batch": 1, "height": 5 * scale, "width": 3 * scale},
                {"batch": 3, "height": 2 * scale, "width": 7 * scale},
            ),
            feed=lambda rng, sizes: {given.name: normal(rng, given.sized(sizes))},
            buffer=lambda name: None,
        )

    latents = Port("latents", WEIGHT, ("batch", channels, "height", "width"))
    pixels = Port("pixels", WEIGHT, ("batch", colours[1], "pixel_height", "pixel_width"))
    picture = Port("pixels", WEIGHT, ("batch", colours[0], "height", "width"))
    encoded = Port("latents", WEIGHT, ("batch", channels, "latent_height", "latent_width"))
    return (
        part("decoder", _Decoder, ("encoder", "quant_conv"), latents, pixels, 1),
        part("encoder", _Encoder, ("decoder", "post_quant_conv"), picture, encoded, factor),
    )
