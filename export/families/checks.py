"""Checks of a checkpoint's configuration that several families share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError
from ...runtime.bundle.families import TINY
from ...runtime.bundle.manifest import Latents
from .configs import check_known

AUTOENCODER_TINY = "AutoencoderTiny"
MOST = 64  # of its stages, and of the scale of each; far above any use


def check_classes(index: dict[str, Any], classes: Mapping[str, str | Sequence[str]]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, gives each component its class, or one of several."""
    for name, wanted in classes.items():
        known = [wanted] if isinstance(wanted, str) else list(wanted)
        found = class_of(index, name)
        # transformers 5 has one tokenizer class; 4 wrote CLIPTokenizerFast for the same files
        if found not in (*known, *(one + "Fast" for one in known if one.endswith("Tokenizer"))):
            raise CheckpointError(
                f"model_index.json gives {name} as {found!r}; Segue exports {', '.join(known)}. "
                "Choose a checkpoint with that class."
            )


def class_of(index: dict[str, Any], name: str) -> str | None:
    """Return the class of a component in a model_index.json, whose entries are [library, class] or [null, null]."""
    entry = index.get(name) or [None, None]
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(e, str | None) for e in entry):
        raise CheckpointError(
            f"model_index.json gives {name} as {str(entry)[:80]!r}, not [library, class]. Fetch the file again."
        )
    return entry[1]


def check_keys(where: str, config: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless each setting of `only` has its one value in `config`, the file `where`."""
    for key, wanted in only.items():
        if config.get(key) != wanted:
            raise CheckpointError(
                f"{where} sets {key} to {str(config.get(key))[:60]!r}, which Segue does not support. "
                f"Choose a checkpoint with {key}: {json.dumps(wanted)}."
            )


def check_tiny(config: Mapping[str, Any], latents: Latents) -> None:
    """Raise CheckpointError unless `config` is that of an AutoencoderTiny which decodes the model's `latents`."""
    where, remove = f"{TINY}/config.json", f"Remove the folder {TINY}, which only previews need."
    if config.get("_class_name") != AUTOENCODER_TINY:
        raise CheckpointError(
            f"{where} is of {str(config.get('_class_name'))[:60]!r}; previews take an {AUTOENCODER_TINY}. {remove}"
        )
    check_known(where, config, AUTOENCODER_TINY)
    try:
        scale, stages = int(config["upsampling_scaling_factor"]), len(config["decoder_block_out_channels"]) - 1
        factor = scale**stages if 1 <= scale <= MOST and stages <= MOST else 0
        found = config["latent_channels"], factor, config["out_channels"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unusable(error) from None
    if found != (latents.channels, latents.factor, 3):
        raise CheckpointError(
            f"{where} decodes {found[0]} channels at {found[1]} pixels to {found[2]} colours; the model has "
            f"{latents.channels} channels at {latents.factor} pixels. Take the one of this model. {remove}"
        )


def unusable(error: Exception) -> CheckpointError:
    """Return the error for a config.json that lacks a key, or has a value that its class does not take."""
    return CheckpointError(
        f"A config.json of the checkpoint cannot be used: {type(error).__name__} {error}. "
        "Save the checkpoint again with diffusers' save_pretrained."
    )
