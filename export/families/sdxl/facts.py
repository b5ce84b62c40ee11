"""Check a Stable Diffusion XL checkpoint, and read its sampler, latents and picture sizes."""

from __future__ import annotations

import json
from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, NoisePrediction, Sampler, Sizes
from ...checkpoint.read import Checkpoint, read_json
from ..base import Facts
from ..checks import check_classes, unusable

PIPELINE = "StableDiffusionXLPipeline"
FOLDERS = ("text_encoder", "text_encoder_2", "unet", "vae")
CLASSES = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
    "scheduler": "EulerDiscreteScheduler",
}
# The runtime's sampler supports these settings of EulerDiscreteScheduler only with these values
NEUTRAL: dict[str, Any] = {
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "interpolation_type": "linear",
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "trained_betas": None,
    "timestep_type": "discrete", "rescale_betas_zero_snr": False, "final_sigmas_type": "zero",
}  # fmt: skip
DEFAULTS = {"beta_schedule": "linear"}  # defaults of the class that are not neutral


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of Stable Diffusion XL with Euler steps."""
    check_classes(index, CLASSES)


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latent geometry and sizes; raises CheckpointError for unsupported settings."""
    scheduler = read_json(found.root / "scheduler" / "scheduler_config.json", found.root)
    for key, neutral in NEUTRAL.items():
        if scheduler.get(key, DEFAULTS.get(key, neutral)) not in (neutral, None):
            raise CheckpointError(
                f"scheduler_config.json sets {key} to {scheduler.get(key, DEFAULTS.get(key))!r}, which the runtime's "
                f"sampler does not support. Export a checkpoint whose scheduler has {key}: {json.dumps(neutral)}."
            )
    settings = found.settings
    try:
        unet, vae = found.parts["unet"].config, found.parts["vae"].config
        widths = [found.parts[name].config["hidden_size"] for name in ("text_encoder", "text_encoder_2")]
        cross = unet["cross_attention_dim"]
        if cross != sum(widths):
            raise CheckpointError(
                f"unet/config.json has cross_attention_dim {cross}; the text encoders give {sum(widths)}. These parts "
                "do not belong together; fetch the checkpoint again."
            )
        if unet.get("addition_embed_type") != "text_time" or unet.get("time_cond_proj_dim") is not None:
            raise CheckpointError(
                f"unet/config.json has addition_embed_type {unet.get('addition_embed_type')!r} and time_cond_proj_dim "
                f"{unet.get('time_cond_proj_dim')!r}; Segue exports 'text_time' and None. Choose such a checkpoint."
            )
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        unit = factor * 2 ** (len(unet["block_out_channels"]) - 1)
        side = unet["sample_size"] * factor
        maximum = min(settings.maximum_size or 2 * side, MAX_SIDE) // unit * unit
        latents = Latents(
            unet["in_channels"], factor, 1, float(vae["scaling_factor"]), float(vae.get("shift_factor") or 0)
        )
        noise = NoisePrediction(
            (float(scheduler.get("beta_start", 1e-4)), float(scheduler.get("beta_end", 0.02))),
            str(scheduler.get("timestep_spacing", "linspace")),
            int(scheduler.get("steps_offset", 0)),
        )
        sampler = Sampler(
            "euler", 1.0, int(scheduler.get("num_train_timesteps", 1000)), settings.steps, float(settings.guidance),
            noise=noise,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None
    if settings.sigmas:
        raise CheckpointError("segue.json has sigmas, but this sampler makes its levels from the steps. Remove them.")
    sizes = Sizes((side, side), min(-(-64 // unit) * unit, side), maximum, unit)
    zeros = found.index.get("force_zeros_for_empty_prompt", True) is True
    # diffusers' pipeline widens the autoencoder of such a checkpoint before it decodes
    wide = ("vae",) if vae.get("force_upcast", True) else ()
    return Facts(sampler, latents, sizes, zero_negative=zeros, wide=wide)
