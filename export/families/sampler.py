"""The sampler of a bundle, from the scheduler of its checkpoint and the settings of the export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ...runtime.bundle.limits import BETAS, FLOW
from ...runtime.bundle.manifest import Sampler, TokenShift
from ..checkpoint.read import Checkpoint, Settings, read_json
from .checks import class_of
from .schedulers import FILE, SCHEDULERS, noise_prediction, read_scheduler, unsupported

FLOW_SCHEDULERS = tuple(name for name, row in SCHEDULERS.items() if row.sampler in FLOW)
BETA_SCHEDULERS = tuple(name for name, row in SCHEDULERS.items() if row.sampler in BETAS)


def scheduler_of(found: Checkpoint) -> dict[str, Any]:
    """Return the settings of a checkpoint's scheduler, as "sampler" the one that plays it, and its "grid".

    Raises CheckpointError for a setting that the sampler does not support.
    """
    config = read_json(found.root / "scheduler" / FILE, found.root)
    row, settings = read_scheduler(config, str(class_of(found.index, "scheduler")))
    return {**settings, "sampler": row.sampler, "grid": row.grid}


def plain_shift(scheduler: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a shift that depends on the picture's size, which only some families have."""
    if scheduler.get("use_dynamic_shifting"):
        raise unsupported("use_dynamic_shifting", scheduler["use_dynamic_shifting"], [False])


def flow_sampler(settings: Settings, scheduler: Mapping[str, Any]) -> Sampler:
    """Return the sampler of a flow-matching checkpoint; raises CheckpointError for settings of other samplers."""
    kind = settings.sampler or (FLOW[1] if scheduler.get("stochastic_sampling") else FLOW[0])
    if kind not in FLOW:
        raise CheckpointError(f"the sampler {kind!r} does not play flow matching. Choose {' or '.join(FLOW)}.")
    if settings.spacing or settings.prediction or settings.timesteps or settings.eta is not None:
        raise CheckpointError(
            "spacing, prediction, timesteps and eta belong to networks trained on betas. Remove them from segue.json."
        )
    shift = None
    if scheduler.get("use_dynamic_shifting"):
        shift = TokenShift(
            (int(scheduler["base_image_seq_len"]), int(scheduler["max_image_seq_len"])),
            (float(scheduler["base_shift"]), float(scheduler["max_shift"])),
        )
    stated = scheduler["flow_shift" if "flow_shift" in scheduler else "shift"]
    return Sampler(
        kind, float(stated), int(scheduler["num_train_timesteps"]), *_defaults(settings), settings.sigmas, shift,
    )  # fmt: skip


def beta_sampler(settings: Settings, scheduler: Mapping[str, Any]) -> Sampler:
    """Return the sampler of a checkpoint trained on betas; raises CheckpointError for settings of other samplers."""
    kind = settings.sampler or scheduler["sampler"]
    if kind not in BETAS:
        raise CheckpointError(
            f"the sampler {kind!r} does not play networks trained on betas. Choose {' or '.join(BETAS)}."
        )
    if settings.sigmas:
        raise CheckpointError(
            f"the sigmas {settings.sigmas} cannot be used, because {kind} makes its own from the steps. Leave them out."
        )
    noise = noise_prediction(scheduler)
    own: dict[str, Any] = {
        "spacing": settings.spacing,
        "prediction": settings.prediction,
        "timesteps": settings.timesteps,
    }
    changed = {key: value for key, value in own.items() if value}
    changed |= {} if settings.eta is None else {"eta": settings.eta}
    if kind != scheduler["sampler"]:
        changed["last"] = "zero"  # of the scheduler that is replaced
    return Sampler(
        kind, 1.0, int(scheduler["num_train_timesteps"]), *_defaults(settings),
        noise=dataclasses.replace(noise, **changed),
    )  # fmt: skip


def _defaults(settings: Settings) -> tuple[int, float]:
    assert settings.steps is not None, "find_defaults"
    assert settings.guidance is not None, "find_defaults"
    return settings.steps, float(settings.guidance)
