"""Check a Stable Diffusion XL checkpoint, and read its sampler, latents and picture sizes."""

from __future__ import annotations

from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Sizes
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import check_classes, check_keys, unusable
from ..sampler import BETA_SCHEDULERS, beta_sampler, scheduler_of

PIPELINE = "StableDiffusionXLPipeline"
FOLDERS = ("text_encoder", "text_encoder_2", "unet", "vae")
CLASSES = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
    "scheduler": BETA_SCHEDULERS,
}


# Settings that the pipeline, or Segue's graph of the class, supports only with these values
ONLY_UNET: dict[str, Any] = {
    "addition_embed_type": "text_time", "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "attention_type": "default",
}  # fmt: skip
ONLY_VAE: dict[str, Any] = {"latents_mean": None, "latents_std": None}


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of Stable Diffusion XL."""
    check_classes(index, CLASSES)


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latent geometry and sizes; raises CheckpointError for unsupported settings."""
    scheduler = scheduler_of(found)
    settings = found.settings
    unet, vae = found.parts["unet"].config, found.parts["vae"].config
    check_keys("unet/config.json", {"attention_type": "default"} | unet, ONLY_UNET)  # older configs lack it
    check_keys("vae/config.json", vae, ONLY_VAE)
    try:
        widths = [found.parts[name].config["hidden_size"] for name in ("text_encoder", "text_encoder_2")]
        cross = unet["cross_attention_dim"]
        if cross != sum(widths):
            raise CheckpointError(
                f"unet/config.json has cross_attention_dim {cross}; the text encoders give {sum(widths)}. These parts "
                "do not belong together; fetch the checkpoint again."
            )
        for key in ("in_channels", "out_channels"):
            if unet.get(key, 4) != vae["latent_channels"]:
                raise CheckpointError(
                    f"unet/config.json has {key} {unet[key]}; the autoencoder has {vae['latent_channels']} channels. "
                    "Choose a checkpoint that draws pictures from text alone, with a UNet of that many channels."
                )
        if not isinstance(unet["sample_size"], int):
            raise CheckpointError(
                f"unet/config.json has sample_size {unet['sample_size']!r}; Segue exports models of square pictures, "
                "with one number. Choose such a checkpoint."
            )
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        unit = factor * 2 ** (len(unet["block_out_channels"]) - 1)
        side = unet["sample_size"] * factor
        maximum = min(settings.maximum_size or 2 * side, MAX_SIDE) // unit * unit
        latents = Latents(
            unet["in_channels"],
            factor,
            1,
            float(vae["scaling_factor"]),
            0.0,  # its pipeline ignores shift_factor
        )
        sampler = beta_sampler(settings, scheduler)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None
    sizes = Sizes((side, side), min(-(-64 // unit) * unit, side), maximum, unit)
    zeros = found.index.get("force_zeros_for_empty_prompt", True) is True
    # diffusers' pipeline widens the autoencoder of such a checkpoint before it decodes
    wide = ("vae",) if vae.get("force_upcast", True) else ()
    return Facts(sampler, latents, sizes, zero_negative=zeros, wide=wide)
