"""Check a LongCat-Image checkpoint, and read its sampler, latents and picture sizes."""

from __future__ import annotations

from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Sampler, Sizes, Template, TokenShift
from ...checkpoint.read import Checkpoint, read_json
from ..base import Facts
from ..checks import check_classes, plain_scheduler, unusable

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
    scheduler = read_json(found.root / "scheduler" / "scheduler_config.json", found.root)
    moving = bool(scheduler.get("use_dynamic_shifting"))
    plain_scheduler(scheduler | {"use_dynamic_shifting": False})
    if moving and scheduler.get("time_shift_type", "exponential") != "exponential":
        raise CheckpointError(
            f"scheduler_config.json sets time_shift_type to {scheduler['time_shift_type']!r}, which the runtime does "
            "not support. Export a checkpoint with exponential."
        )
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
        shift = None
        if moving:
            shift = TokenShift(
                (int(scheduler.get("base_image_seq_len", 256)), int(scheduler.get("max_image_seq_len", 4096))),
                (float(scheduler.get("base_shift", 0.5)), float(scheduler.get("max_shift", 1.15))),
            )
        sampler = Sampler(
            "flow-match-euler", float(scheduler.get("shift", 1.0)), int(scheduler.get("num_train_timesteps", 1000)),
            settings.steps, float(settings.guidance), settings.sigmas, shift,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None
    return Facts(sampler, latents, Sizes((side, side), min(-(-64 // unit) * unit, side), maximum, unit))
