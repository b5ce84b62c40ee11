"""Check a Z-Image checkpoint, and read its sampler, latents and picture sizes."""

from __future__ import annotations

from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Sizes, Template
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import check_classes, check_keys, unusable
from ..sampler import flow_sampler, plain_shift, scheduler_of

PIPELINE = "ZImagePipeline"
FOLDERS = ("text_encoder", "transformer", "vae")
CLASSES = {
    "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
    "tokenizer": "Qwen2Tokenizer",
    "transformer": "ZImageTransformer2DModel",
    "vae": "AutoencoderKL",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
TOKENS = 512  # of a prompt in its template, at most: the pipeline's default
TEMPLATE = Template("", "", padding="none", quotations=False)  # its texts come from the tokenizer's chat template
CHAT = {"enable_thinking": True}
PATCH = 2
GROUP = 32  # a picture and a text have a multiple of this many tokens
DEFAULT_SIDE, LARGEST_SIDE = 1024, 2048  # pixels; segue.json may raise the second


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of Z-Image."""
    check_classes(index, CLASSES)


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latent geometry and sizes; raises CheckpointError for unsupported settings."""
    scheduler = scheduler_of(found)
    plain_shift(scheduler)
    settings = found.settings
    try:
        transformer, vae = found.parts["transformer"].config, found.parts["vae"].config
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        channels = vae["latent_channels"]
        unit = factor * PATCH
        _fit(transformer, "in_channels", channels, "the autoencoder has")
        _fit(transformer, "cap_feat_dim", found.parts["text_encoder"].config["hidden_size"], "the text encoder gives")
        check_keys("transformer/config.json", transformer, {"siglip_feat_dim": None})  # of the model for editing
        reach = _reach(transformer) * unit
        maximum = min(settings.maximum_size or LARGEST_SIDE, reach, MAX_SIDE) // unit * unit
        side = min(DEFAULT_SIDE // unit * unit, maximum)
        latents = Latents(channels, factor, PATCH, float(vae["scaling_factor"]), float(vae.get("shift_factor") or 0))
        sampler = flow_sampler(settings, scheduler)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None
    return Facts(sampler, latents, Sizes((side, side), min(-(-64 // unit) * unit, side), maximum, unit))


def _reach(transformer: dict[str, Any]) -> int:
    """Return the most tokens along a side, which the places of the rotary embedding bound."""
    patches = list(zip(transformer["all_patch_size"], transformer["all_f_patch_size"], strict=True))
    if (PATCH, 1) not in patches:
        raise CheckpointError(
            f"transformer/config.json has all_patch_size {str(transformer['all_patch_size'])[:40]} and "
            f"all_f_patch_size {str(transformer['all_f_patch_size'])[:40]}; the pipeline takes patches of {PATCH} "
            "and 1. Fetch the checkpoint again."
        )
    lengths = transformer["axes_lens"]
    # The text begins at place 1 and its pads count. The picture has the place behind it on the first axis
    if len(lengths) != 3 or not all(isinstance(n, int) for n in lengths) or lengths[0] < TOKENS + 2:
        raise CheckpointError(
            f"transformer/config.json has axes_lens {str(lengths)[:60]}; a prompt of {TOKENS} tokens and its picture "
            f"need three whole numbers, the first at least {TOKENS + 2}. Fetch the checkpoint again."
        )
    return min(lengths[1:])


def _fit(config: dict[str, Any], key: str, need: int, who: str) -> None:
    if config[key] != need:
        raise CheckpointError(
            f"transformer/config.json has {key} {str(config[key])[:40]}; {who} {need}. "
            "These parts do not belong together; fetch the checkpoint again."
        )
