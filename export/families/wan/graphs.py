"""The graphs of Wan's models: transformers, causal autoencoders and a UMT5 text encoder, as diffusers lays them out.

Sources: diffusers' WanImageToVideoPipeline and its model classes; for windows of latent frames, `segment.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from ....runtime.bundle.segments import COMPRESSION
from ..checks import unusable
from ..graph import WEIGHT, Graph, Port
from ..modules import FUSED_ATTENTION, PLAIN, Wrapper, widen_outputs
from .segment import SegmentTransformer
from .streams import Decode, Encode, Stream

# Some configs of Wan 2.2 state widths of Wan 2.1's image encoder, without weights for it
NO_IMAGES = {"image_dim": None, "added_kv_proj_dim": None}


class _Motion(Wrapper):
    def forward(self, latents, timestep, text):  # type: ignore[no-untyped-def]
        return self.model(latents, timestep, text, return_dict=False)[0]


class _Detail(Wrapper):
    def forward(self, latents, timesteps, text, positions):  # type: ignore[no-untyped-def]
        return self.model(latents, timesteps, text, positions)


class _TextEncoder(Wrapper):
    def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
        # The model has two names for the table, and files have only this one
        embedded = self.model.shared(input_ids)
        states = self.model.encoder(inputs_embeds=embedded, attention_mask=attention_mask).last_hidden_state
        return states * attention_mask[..., None].to(states.dtype)  # zeros after the prompt's end, as in the pipeline


Graphs = Callable[[Mapping[str, dict[str, Any]], Collection[str]], tuple[Graph, ...]]


def traceable(graphs: Graphs) -> Graphs:
    """Return `graphs` with CheckpointError for a config that lacks a key or has a value that its class refuses."""

    @functools.wraps(graphs)
    def checked(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
        try:
            return graphs(configs, takes)
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise unusable(error) from None

    return checked


def text_encoder(config: dict[str, Any]) -> Graph:
    """Return the graph of a UMT5EncoderModel.

    input_ids and attention_mask int64 [batch, length] -> states [batch, length, width], zeros at masked tokens.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    width, vocabulary = config["d_model"], config["vocab_size"]

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        batch, length = sizes["batch"], sizes["length"]
        kept = np.arange(length) < rng.integers(1, length + 1, batch)[:, None]
        return {
            "input_ids": np.where(kept, rng.integers(1, vocabulary, (batch, length)), 0),
            "attention_mask": kept.astype(np.int64),
        }

    return Graph(
        component="text_encoder",
        folder="text_encoder",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: widen_outputs(UMT5EncoderModel._from_config(UMT5Config(**config))),
        load=lambda path: UMT5EncoderModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True),
        wrap=_TextEncoder,
        inputs=(Port("input_ids", "int64", ("batch", "length")), Port("attention_mask", "int64", ("batch", "length"))),
        outputs=(Port("states", WEIGHT, ("batch", "length", width)),),
        traced={"batch": 2, "length": 12},
        trials=({"batch": 1, "length": 24}, {"batch": 3, "length": 7}),
        feed=feed,
        buffer=lambda name: None,
        narrow=lambda model: widen_outputs(model).half(),
    )


def motion(folder: str, config: dict[str, Any]) -> Graph:
    """Return the graph of Stage I's WanTransformer3DModel, or of one of its two experts.

    latents [batch, in channels, frames, height, width] (noisy ones, mask, image), timestep [batch] float32 (sigma times
    1000), text [batch, length, width] -> velocity [batch, out channels, frames, height, width].
    """
    from diffusers import WanTransformer3DModel

    inputs = (Port("timestep", "float32", ("batch",)),)
    return _transformer(folder, config, WanTransformer3DModel, _Motion, inputs, ())


def detail(folder: str, config: dict[str, Any]) -> Graph:
    """Return the graph of a transformer on a window of latent frames, each with a timestep; see SegmentTransformer.

    latents [batch, in channels, frames, height, width] (of Stage II, the last channels are the reference), timesteps
    [batch, frames] float32, 0 for clean frames, text [batch, length, width], positions int64 [batch, frames] ->
    velocity.
    """
    timesteps = (Port("timesteps", "float32", ("batch", "frames")),)
    positions = (Port("positions", "int64", ("batch", "frames")),)
    return _transformer(folder, config, SegmentTransformer, _Detail, timesteps, positions)


def _transformer(
    folder: str, config: dict[str, Any], kind: Any, wrap: Callable[[torch.nn.Module], torch.nn.Module],
    before: tuple[Port, ...], after: tuple[Port, ...],
) -> Graph:  # fmt: skip
    """Return the graph of a Wan transformer of class `kind`; `before` and `after` are its inputs around the text."""
    taken, given, width = config["in_channels"], config["out_channels"], config["text_dim"]
    _, high, wide = config["patch_size"]
    longest = config["rope_max_seq_len"]
    video = ("frames", "height", "width")
    inputs = (
        Port("latents", WEIGHT, ("batch", taken, *video)), *before, Port("text", WEIGHT, ("batch", "length", width)),
        *after,
    )  # fmt: skip

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        drawn: dict[str, np.ndarray] = {}
        for port in inputs:
            shape = port.sized(sizes)
            if port.dtype == "int64":
                drawn[port.name] = np.sort(rng.integers(0, longest, shape), -1)
            elif port.dtype == "float32":
                drawn[port.name] = rng.uniform(0, 1000, shape).astype(np.float32)
            else:
                drawn[port.name] = rng.standard_normal(shape, dtype=np.float32)
        return drawn

    def buffer(name: str) -> np.ndarray | None:
        if name not in ("rope.freqs_cos", "rope.freqs_sin"):
            return None
        from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

        rope = WanRotaryPosEmbed(config["attention_head_dim"], config["patch_size"], longest)
        return getattr(rope, name.partition(".")[2]).float().numpy()

    return Graph(
        component=folder,
        folder=folder,
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=lambda: kind.from_config(config | NO_IMAGES),
        load=lambda path: kind.from_pretrained(
            path, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=True, **NO_IMAGES
        ),
        wrap=wrap,
        inputs=inputs,
        outputs=(Port("velocity", WEIGHT, ("batch", given, *video)),),
        traced={"batch": 2, "frames": 3, "height": 4 * high, "width": 6 * wide, "length": 24},
        trials=(
            {"batch": 1, "frames": 5, "height": 5 * high, "width": 3 * wide, "length": 31},
            {"batch": 3, "frames": 2, "height": 3 * high, "width": 7 * wide, "length": 11},
        ),
        feed=feed,
        buffer=buffer,
    )


def streams(folder: str, config: dict[str, Any]) -> tuple[Graph, ...]:
    """Return the four graphs of an AutoencoderKLWan, `first` and `next` of its encoder and of its decoder.

    Encoder: pixels [1, 3, 1 or 4, height, width] in [-1, 1] -> latents [1, channels, 1, ...], the posterior's mean,
    which the config's latents_mean and latents_std normalise. Decoder: latents [1, channels, 1, height, width]
    -> pixels [1, 3, 1 or 4, ...] in [-1, 1]. `next` takes the caches of the previous call; both
    return the caches for the next one.
    """
    ratio = config["scale_factor_spatial"] if config.get("patch_size") else 2 ** (len(config["dim_mult"]) - 1)
    pixels: tuple[int | str, ...] = ("pixel_height", "pixel_width")
    latents: tuple[int | str, ...] = ("height", "width")
    made = []
    for first in (True, False):
        frames = 1 if first else COMPRESSION
        seen = Port("pixels", WEIGHT, (1, 3, frames, *latents))
        found = Port("latents", WEIGHT, (1, config["z_dim"], 1, "latent_height", "latent_width"))
        made.append(_stream(folder, config, Encode, first, seen, found, ratio, ("decoder", "post_quant_conv")))
        seen = Port("latents", WEIGHT, (1, config["z_dim"], 1, *latents))
        found = Port("pixels", WEIGHT, (1, 3, frames, *pixels))
        made.append(_stream(folder, config, Decode, first, seen, found, 1, ("encoder", "quant_conv")))
    return tuple(made)


def _stream(
    folder: str, config: dict[str, Any], kind: type[Stream], first: bool, taken: Port, given: Port, unit: int,
    dropped: tuple[str, ...],
) -> Graph:  # fmt: skip
    """Return one graph; the sides of its input are multiples of `unit`."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        caches = kind(AutoencoderKLWan.from_config(config), first).caches
    scales = {cache.scale for cache in caches}
    ports = tuple(
        Port(f"cache_{i:02}", WEIGHT, (1, cache.channels, cache.frames, *_sides(cache.scale)))
        for i, cache in enumerate(caches)
    )
    inputs = (taken,) if first else (taken, *ports)

    def build() -> torch.nn.Module:
        model = AutoencoderKLWan.from_config(config)
        for name in dropped:  # this graph has only half of the model
            delattr(model, name)
        return model

    def sizes(height: int, width: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for scale in scales | {Fraction(1)}:
            found |= dict(zip(_sides(scale), (int(height * unit * scale), int(width * unit * scale)), strict=True))
        return found

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        return {port.name: rng.standard_normal(port.sized(sizes), dtype=np.float32) for port in inputs}

    stage, half = "first" if first else "next", kind.part
    return Graph(
        component=f"{folder}_{half}_{stage}",
        folder=folder,
        file=f"{half}_{stage}.onnx",
        opset=PLAIN,
        build=build,
        load=lambda path: AutoencoderKLWan.from_pretrained(path, torch_dtype=torch.float32, use_safetensors=True),
        wrap=lambda model: kind(model, first),
        inputs=inputs,
        outputs=(given, *(Port(f"next_{port.name}", port.dtype, port.shape) for port in ports)),
        traced=sizes(4, 6),
        trials=(sizes(5, 3), sizes(3, 4)),
        feed=feed,
        buffer=lambda name: None,
    )


def _sides(scale: Fraction) -> tuple[str, str]:
    """Return the names of a cache's height and width: the input's names if the sizes are equal."""
    if scale == 1:
        return "height", "width"
    mark = f"_by_{scale.numerator}" if scale.denominator == 1 else f"_over_{scale.denominator}"
    return f"height{mark}", f"width{mark}"
