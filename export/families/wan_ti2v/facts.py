"""Check a checkpoint of Wan 2.2 TI2V-5B, or of a student of it, and read its facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.families import SECOND_EXPERT
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import class_of
from ..wan import facts as wan

PIPELINES = (wan.IMAGE_TO_VIDEO, wan.TEXT_TO_VIDEO)
FOLDERS = wan.FOLDERS
USUAL = {"frames": 121, "fps": 24.0, "size": (704, 1280)}  # of Wan 2.2's repository


def holds(index: Mapping[str, Any]) -> bool:
    """Return whether a model_index.json of one of PIPELINES is of this family: each latent frame has a timestep."""
    return bool(index.get("expand_timesteps"))


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, has the classes of this family."""
    wan.check_images(index)
    wan.check_classes(index, wan.CLASSES, "Wan's TI2V", "Choose a checkpoint of Wan 2.2 TI2V-5B.")
    if class_of(index, SECOND_EXPERT) is not None:
        raise CheckpointError(
            f"model_index.json has {SECOND_EXPERT} beside expand_timesteps, and Wan's TI2V has one transformer. "
            "Choose a checkpoint of Wan 2.2 TI2V-5B."
        )


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latents, sizes and window of a checkpoint; raises as `wan.facts.one_stage` does."""
    return wan.one_stage(found, "first", USUAL)
