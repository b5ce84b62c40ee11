"""Check a checkpoint of Wan 2.2's image to video, such as I2V-A14B, and read its facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....runtime.bundle.families import SECOND_EXPERT
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import class_of
from ..wan import facts as wan

PIPELINES = (wan.IMAGE_TO_VIDEO,)
FOLDERS = wan.FOLDERS
USUAL = {"frames": 81, "fps": 16.0, "size": (480, 832)}  # of Wan 2.2's repository and of diffusers' pipeline


def holds(index: Mapping[str, Any]) -> bool:
    """Return whether a model_index.json of one of PIPELINES is of this family."""
    return not index.get("expand_timesteps")


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, has the classes of this family."""
    second = {SECOND_EXPERT: (wan.TRANSFORMER,)} if class_of(index, SECOND_EXPERT) is not None else {}
    advice = "Choose a checkpoint of Wan 2.2's image to video."
    wan.check_images(index)
    wan.check_classes(index, wan.CLASSES | second, "Wan's image to video", advice)


def facts(found: Checkpoint) -> Facts:
    """Return the sampler, latents, sizes and window of a checkpoint; raises as `wan.facts.one_stage` does."""
    return wan.one_stage(found, "mask", USUAL)
