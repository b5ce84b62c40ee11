"""Check a FLUX.2-klein checkpoint, and read its sampler, latents and picture sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Sizes, StepShift, Template
from ...checkpoint.read import Checkpoint
from .. import qwen3
from ..base import Facts
from ..checks import check_classes, check_keys, unusable
from ..sampler import flow_sampler, scheduler_of

PIPELINE = "Flux2KleinPipeline"
FOLDERS = ("text_encoder", "transformer", "vae")
CLASSES = {
    "text_encoder": "Qwen3ForCausalLM",
    "tokenizer": "Qwen2Tokenizer",
    "transformer": "Flux2Transformer2DModel",
    "vae": "AutoencoderKLFlux2",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
# Constants of the pipeline: the tokens of a prompt and its chat, the states of Qwen3, and the squares of latents
TOKENS = 512
TEMPLATE = Template("", "", padding="end", quotations=False)
CHAT = {"enable_thinking": False}
STATES = (9, 18, 27)
SQUARE = 2
SHIFT = StepShift((10, 200), (8.73809524e-05, 0.00016927), (1.89833333, 0.45666666), 4300)
DEFAULT_SIDE = 1024  # pixels
MAXIMUM_SIDE = 2048


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of FLUX.2-klein."""
    check_classes(index, CLASSES)


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latent geometry and sizes; raises CheckpointError for unsupported settings."""
    scheduler = scheduler_of(found)
    settings = found.settings
    try:
        transformer, vae = found.parts["transformer"].config, found.parts["vae"].config
        for folder, config, size in (("vae", vae, [SQUARE, SQUARE]), ("transformer", transformer, 1)):
            check_keys(f"{folder}/config.json", {"patch_size": size} | config, {"patch_size": size})
        factor = SQUARE * 2 ** (len(vae["block_out_channels"]) - 1)
        channels = SQUARE**2 * vae["latent_channels"]
        for key, given in (("in_channels", None), ("out_channels", channels)):
            if (transformer.get(key) or given) != channels:
                raise CheckpointError(
                    f"transformer/config.json has {key} {str(transformer.get(key))[:40]}; the autoencoder gives "
                    f"{channels}. Fetch the checkpoint again."
                )
        width = qwen3.check(found.parts["text_encoder"].config, STATES)
        if transformer["joint_attention_dim"] != width:
            raise CheckpointError(
                f"transformer/config.json has joint_attention_dim {str(transformer['joint_attention_dim'])[:40]}; the "
                f"text encoder gives {width}. Fetch the checkpoint again."
            )
        maximum = min(settings.maximum_size or MAXIMUM_SIDE, MAX_SIDE) // factor * factor
        side = min(DEFAULT_SIDE // factor * factor, maximum)
        sampler = flow_sampler(settings, scheduler)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None
    if sampler.token_shift is not None:  # the pipeline computes the shift itself
        sampler = dataclasses.replace(sampler, token_shift=None, step_shift=SHIFT)
    if found.index.get("is_distilled"):
        if sampler.guidance > 1:
            raise CheckpointError(
                f"guidance is {sampler.guidance:g}, but model_index.json sets is_distilled, and such a model takes no "
                "guidance. Leave it out."
            )
        sampler = dataclasses.replace(sampler, guidance=1.0, guidable=False)
    sizes = Sizes((side, side), min(-(-64 // factor) * factor, side), maximum, factor)
    return Facts(sampler, Latents(channels, factor, 1, 1.0, 0.0), sizes)
