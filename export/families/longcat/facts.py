"""Check a LongCat-Image checkpoint, and read its sampler, latents and picture sizes."""

from __future__ import annotations

from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Sizes, Template
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import check_classes, unusable
from ..sampler import flow_sampler, scheduler_of

PIPELINE = "LongCatImagePipeline"
FOLDERS = ("text_encoder", "transformer", "vae")
CLASSES = {
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    "tokenizer": "Qwen2Tokenizer",
    "transformer": "LongCatImageTransformer2DModel",
    "vae": "AutoencoderKL",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
# Constants of the pipeline: a prompt has 512 tokens inside these texts; pictures begin at position 512
TOKENS = 512
TEMPLATE = Template(
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, "
    "suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
PATCH = 2
DEFAULT_SIDE = 128  # latents


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of LongCat-Image."""
    check_classes(index, CLASSES)


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latent geometry and sizes; raises CheckpointError for unsupported settings."""
    scheduler = scheduler_of(found)
    settings = found.settings
    try:
        transformer, vae = found.parts["transformer"].config, found.parts["vae"].config
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        channels = vae["latent_channels"]
        if transformer["in_channels"] != channels * PATCH**2:
            raise CheckpointError(
                f"transformer/config.json has in_channels {transformer['in_channels']}; {PATCH} x {PATCH} latents of "
                f"{channels} channels need {channels * PATCH**2}. Fetch the checkpoint again."
            )
        text = found.parts["text_encoder"].config
        width = text.get("text_config", text)["hidden_size"]
        if transformer["joint_attention_dim"] != width:
            raise CheckpointError(
                f"transformer/config.json has joint_attention_dim {transformer['joint_attention_dim']}; the text "
                f"encoder gives {width}. Fetch the checkpoint again."
            )
        latents = Latents(channels, factor, PATCH, float(vae["scaling_factor"]), float(vae.get("shift_factor") or 0))
        unit = factor * PATCH
        maximum = min(settings.maximum_size or 2048, MAX_SIDE) // unit * unit
        side = min(DEFAULT_SIDE * factor, maximum)
        sampler = flow_sampler(settings, scheduler)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None
    return Facts(sampler, latents, Sizes((side, side), min(-(-64 // unit) * unit, side), maximum, unit))
