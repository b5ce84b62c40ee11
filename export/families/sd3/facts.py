"""Check a Stable Diffusion 3 checkpoint, and read its sampler, latents and picture sizes."""

from __future__ import annotations

from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.families import T5
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Sizes
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import check_classes, class_of, unusable
from ..sampler import flow_sampler, plain_shift, scheduler_of

PIPELINE = "StableDiffusion3Pipeline"
FOLDERS = ("text_encoder", "text_encoder_2", "transformer", "vae")
T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
CLASSES = {
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of Stable Diffusion 3, with or without T5."""
    given = {name: class_of(index, name) for name in (T5, "tokenizer_3")}
    if any(given.values()) and (given[T5] != "T5EncoderModel" or given["tokenizer_3"] not in T5_TOKENIZERS):
        raise CheckpointError(
            f"model_index.json gives {T5} as {given[T5]!r} and tokenizer_3 as {given['tokenizer_3']!r}; Segue exports "
            "T5EncoderModel and T5TokenizerFast, or neither. Choose a checkpoint with both."
        )
    check_classes(index, CLASSES)


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latent geometry and sizes of a checkpoint.

    Raises CheckpointError for scheduler settings that the runtime does not support, and if the parts' widths do not fit
    together.
    """
    scheduler = scheduler_of(found)
    plain_shift(scheduler)
    try:
        transformer, vae = found.parts["transformer"].config, found.parts["vae"].config
        encoders = [found.parts[f].config for f in ("text_encoder", "text_encoder_2")]
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        channels, patch, sample, table = (
            _natural(transformer, key) for key in ("in_channels", "patch_size", "sample_size", "pos_embed_max_size")
        )
        latents = Latents(channels, factor, patch, float(vae["scaling_factor"]), float(vae.get("shift_factor") or 0))
        limit = found.settings.maximum_size
        if limit is None and transformer.get("qk_norm"):  # SD3.5, whose table reaches far beyond what it was made for
            limit = 2 * sample * factor
        sizes = _sizes(sample * factor, patch * factor, table * patch * factor, limit)
        sampler = flow_sampler(found.settings, scheduler)
        _fit(transformer, "joint_attention_dim", ">=", sum(e["hidden_size"] for e in encoders))
        _fit(transformer, "pooled_projection_dim", "==", sum(e["projection_dim"] for e in encoders))
        _fit(transformer, "in_channels", "==", vae["latent_channels"])
        if T5 in found.parts:
            _fit(transformer, "joint_attention_dim", "==", found.parts[T5].config["d_model"])
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None
    return Facts(sampler, latents, sizes)


def _natural(config: dict[str, Any], key: str) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**20:
        raise CheckpointError(
            f"transformer/config.json has {key} {str(value)[:40]!r}; it must be a whole number above 0. "
            "Fetch the file again."
        )
    return value


def _sizes(side: int, multiple: int, reach: int, limit: int | None) -> Sizes:
    """Return the sizes of a model for `side` pixels, whose positional table spans `reach` pixels."""
    if side > reach:
        raise CheckpointError(
            f"transformer/config.json has a sample_size of {side} pixels, beyond the {reach} that pos_embed_max_size "
            "spans. Fetch the file again."
        )
    maximum = min(limit or reach, reach, MAX_SIDE) // multiple * multiple
    if side > maximum:
        raise CheckpointError(
            f"segue.json: maximum_size is {limit or MAX_SIDE}, below the {side} pixels of the model "
            "(sample_size in transformer/config.json). Raise it, or remove it."
        )
    return Sizes((side, side), min(-(-64 // multiple) * multiple, side), maximum, multiple)


def _fit(config: dict[str, Any], key: str, relation: str, need: int) -> None:
    have = config[key]
    if have < need or (relation == "==" and have != need):
        raise CheckpointError(
            f"transformer/config.json has {key} {have}; the other parts need {relation} {need}. "
            "These parts do not belong together; fetch the checkpoint again."
        )
