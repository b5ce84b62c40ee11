"""Graphs that several families share: CLIP and T5 text encoders, and the autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...runtime.bundle.families import PREVIEW, TINY
from .graph import WEIGHT, Graph, Port

# Opsets (docs/evidence/export.md): 23 has attention as one operator; 20 runs the autoencoder a fifth faster
FUSED_ATTENTION = 23
PLAIN = 20


class Wrapper(torch.nn.Module):
    """Holds a model as the attribute `model`, so that its parameters have the checkpoint's names after `model.`."""

    model: Any

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


class _TextEncoder(Wrapper):
    def forward(self, input_ids):  # type: ignore[no-untyped-def]
        # With explicit positions the graph does not need CLIP's `position_ids`, a buffer that no file holds
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        result = self.model(input_ids, position_ids=positions, output_hidden_states=True)
        return result.hidden_states[-2], result.text_embeds


class _T5(Wrapper):
    def forward(self, input_ids):  # type: ignore[no-untyped-def]
        return self.model(input_ids).last_hidden_state


class _Decoder(Wrapper):
    def forward(self, latents):  # type: ignore[no-untyped-def]
        return self.model.decode(latents, return_dict=False)[0]


class _TinyDecoder(Wrapper):
    def forward(self, latents):  # type: ignore[no-untyped-def]
        own = self.model.config
        scaled = latents / own.scaling_factor + (own.shift_factor or 0)
        return self.model.decode(scaled, return_dict=False)[0]


class _Encoder(Wrapper):
    def forward(self, pixels):  # type: ignore[no-untyped-def]
        posterior = self.model.encode(pixels, return_dict=False)[0]
        return posterior.mean, posterior.logvar


def text_encoder(folder: str, config: dict[str, Any]) -> Graph:
    """Return the graph of a CLIPTextModelWithProjection.

    input_ids int64 [batch, length] -> hidden_states [batch, length, width], the layer before the last, and pooled
    [batch, projection], the projected state at the first end token.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    width, projection = config["hidden_size"], config["projection_dim"]
    vocabulary, longest = config["vocab_size"], config["max_position_embeddings"]
    end = config.get("eos_token_id", 49407)
    end = vocabulary - 1 if end == 2 else end  # 2 marks an old config, whose models look for the highest id

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        batch, length = sizes["batch"], sizes["length"]
        ids = rng.integers(0, end, (batch, length), dtype=np.int64)
        for row, stop in enumerate(rng.integers(1, length, batch)):
            ids[row, stop:] = end
        return {"input_ids": ids}

    return Graph(
        component=folder,
        folder=folder,
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: CLIPTextModelWithProjection._from_config(CLIPTextConfig(**config), attn_implementation="sdpa"),
        load=lambda path: CLIPTextModelWithProjection.from_pretrained(path, dtype=torch.float32, use_safetensors=True),
        wrap=_TextEncoder,
        inputs=(Port("input_ids", "int64", ("batch", "length")),),
        outputs=(
            Port("hidden_states", WEIGHT, ("batch", "length", width)),
            Port("pooled", WEIGHT, ("batch", projection)),
        ),
        traced={"batch": 2, "length": max(longest // 2, 2)},
        trials=({"batch": 1, "length": longest}, {"batch": 3, "length": max(longest // 3, 2)}),
        feed=feed,
        buffer=lambda name: None,
    )


class _Wide(torch.nn.Linear):
    """A linear layer that computes in float32, whatever the dtype of its weight."""

    def forward(self, states):  # type: ignore[no-untyped-def]
        return torch.nn.functional.linear(states.float(), self.weight.float())


def widen_outputs(model: Any) -> Any:
    """Let the last layers of T5's feed-forward blocks, `wo`, compute in float32; return the model.

    The residual stream overflows fp16, and transformers also keeps these layers in float32.
    """
    for block in list(model.modules()):
        if hasattr(block, "wo"):
            wide = _Wide(block.wo.in_features, block.wo.out_features, bias=False)
            wide.weight = block.wo.weight
            block.wo = wide
    return model


def t5(config: dict[str, Any]) -> Graph:
    """Return the graph of a T5EncoderModel: input_ids int64 [batch, length] -> states [batch, length, width].

    Padding is not masked, as in Stable Diffusion 3's pipeline.
    """
    from transformers import T5Config, T5EncoderModel

    width, vocabulary = config["d_model"], config["vocab_size"]

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        return {"input_ids": rng.integers(0, vocabulary, (sizes["batch"], sizes["length"]))}

    return Graph(
        component="text_encoder_3",
        folder="text_encoder_3",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: widen_outputs(T5EncoderModel._from_config(T5Config(**config))),
        load=lambda path: T5EncoderModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True),
        wrap=_T5,
        inputs=(Port("input_ids", "int64", ("batch", "length")),),
        outputs=(Port("states", WEIGHT, ("batch", "length", width)),),
        traced={"batch": 2, "length": 12},
        trials=({"batch": 1, "length": 24}, {"batch": 3, "length": 7}),
        feed=feed,
        buffer=lambda name: None,
        alias=lambda name: "shared.weight" if name == "encoder.embed_tokens.weight" else name,
        narrow=lambda model: widen_outputs(model).half(),
    )


def autoencoder(config: dict[str, Any]) -> tuple[Graph, Graph]:
    """Return the decoder's and the encoder's graph of an AutoencoderKL; both point into the same weights.

    Decoder: latents [batch, channels, height, width] -> pixels [batch, 3, factor*height, factor*width], about -1 to 1.
    Encoder: pixels -> latents, the mean of the posterior, and logvar, its log variance, both in unscaled latents.
    """
    from diffusers import AutoencoderKL

    channels, factor = config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
    colours = (config["in_channels"], config["out_channels"])
    latents: tuple[int | str, ...] = ("batch", channels, "height", "width")

    def build(drop: tuple[str, ...]) -> torch.nn.Module:
        model = AutoencoderKL.from_config(config)
        for name in drop:  # this graph has only half of the model
            delattr(model, name)
        return model

    def load(folder: str) -> torch.nn.Module:
        return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)

    def feed(name: str, port_channels: int):  # type: ignore[no-untyped-def]
        def draw(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
            return {name: normal(rng, (sizes["batch"], port_channels, sizes["height"], sizes["width"]))}

        return draw

    def trials(scale: int) -> tuple[dict[str, int], ...]:
        return (
            {"batch": 1, "height": 10 * scale, "width": 6 * scale},
            {"batch": 3, "height": 5 * scale, "width": 7 * scale},
        )

    decoder = Graph(
        component="vae_decoder",
        folder="vae",
        file="decoder.onnx",
        opset=PLAIN,
        build=lambda: build(("encoder", "quant_conv")),
        load=load,
        wrap=_Decoder,
        inputs=(Port("latents", WEIGHT, latents),),
        outputs=(Port("pixels", WEIGHT, ("batch", colours[1], "pixel_height", "pixel_width")),),
        traced={"batch": 2, "height": 8, "width": 12},
        trials=trials(1),
        feed=feed("latents", channels),
        buffer=lambda name: None,
    )
    encoder = Graph(
        component="vae_encoder",
        folder="vae",
        file="encoder.onnx",
        opset=PLAIN,
        build=lambda: build(("decoder", "post_quant_conv")),
        load=load,
        wrap=_Encoder,
        inputs=(Port("pixels", WEIGHT, ("batch", colours[0], "height", "width")),),
        outputs=(
            Port("latents", WEIGHT, ("batch", channels, "latent_height", "latent_width")),
            Port("logvar", WEIGHT, ("batch", channels, "latent_height", "latent_width")),
        ),
        traced={"batch": 2, "height": 8 * factor, "width": 12 * factor},
        trials=trials(factor),
        feed=feed("pixels", colours[0]),
        buffer=lambda name: None,
    )
    return decoder, encoder


def tiny_decoder(config: dict[str, Any]) -> Graph:
    """Return the decoder's graph of an AutoencoderTiny, which makes previews.

    latents [batch, channels, height, width] as the denoiser gives them -> pixels [batch, 3, factor*height,
    factor*width], about -1 to 1.
    """
    from diffusers import AutoencoderTiny

    channels = config["latent_channels"]

    def build() -> torch.nn.Module:
        model = AutoencoderTiny.from_config(config)
        del model.encoder
        return model

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        return {"latents": normal(rng, (sizes["batch"], channels, sizes["height"], sizes["width"]))}

    return Graph(
        component=PREVIEW,
        folder=TINY,
        file="decoder.onnx",
        opset=PLAIN,
        build=build,
        load=lambda folder: AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True),
        wrap=_TinyDecoder,
        inputs=(Port("latents", WEIGHT, ("batch", channels, "height", "width")),),
        outputs=(Port("pixels", WEIGHT, ("batch", config["out_channels"], "pixel_height", "pixel_width")),),
        traced={"batch": 2, "height": 8, "width": 12},
        trials=({"batch": 1, "height": 10, "width": 6}, {"batch": 3, "height": 5, "width": 7}),
        feed=feed,
        buffer=lambda name: None,
    )


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers of a normal distribution."""
    return rng.standard_normal(shape, dtype=np.float32)
