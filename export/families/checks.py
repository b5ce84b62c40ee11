"""Checks of a checkpoint's configuration that several families share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError

# The runtime's sampler supports these settings of FlowMatchEulerDiscreteScheduler only with these values
NEUTRAL = {
    "use_dynamic_shifting": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "stochastic_sampling": False,
}


def check_classes(index: dict[str, Any], classes: Mapping[str, str]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, gives each component its class."""
    for name, wanted in classes.items():
        found = class_of(index, name)
        # transformers 5 has one tokenizer class; 4 wrote CLIPTokenizerFast for the same files
        if found not in (wanted, wanted + "Fast" if wanted.endswith("Tokenizer") else wanted):
            raise CheckpointError(
                f"model_index.json gives {name} as {found!r}; Segue exports {wanted}. "
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


def plain_scheduler(scheduler: dict[str, Any]) -> None:
    """Raise CheckpointError for settings that change the noise levels in a way that the runtime does not support."""
    for key, neutral in NEUTRAL.items():
        if scheduler.get(key, neutral) not in (neutral, None):
            raise CheckpointError(
                f"scheduler_config.json sets {key} to {scheduler[key]!r}, which the sampler does not support. "
                f"Export a checkpoint whose scheduler has {key}: {json.dumps(neutral)}."
            )


def unusable(error: Exception) -> CheckpointError:
    """Return the error for a config.json that lacks a key, or has a value that its class does not take."""
    return CheckpointError(
        f"A config.json of the checkpoint cannot be used: {type(error).__name__} {error}. "
        "Save the checkpoint again with diffusers' save_pretrained."
    )
