"""The schedulers of diffusers that Segue plays, one row each, and what it does with every setting of theirs.

A setting is read, or must have one value, or has no effect on pictures from text. A test compares the rows with the
signatures of diffusers' classes, so a new setting makes that test fail instead of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import CheckpointError
from ...runtime.bundle.manifest import NoisePrediction

FILE = "scheduler_config.json"
PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class Scheduler:
    """One class of diffusers: the sampler that plays it, and its settings with the class's own defaults.

    `read`: the settings that Segue reads. `only`: those that must have the given value. `accepts` bounds a setting that
    is read to some values. `neutral`: those without effect.
    """

    sampler: str
    read: Mapping[str, Any]
    only: Mapping[str, Any] = field(default_factory=dict)
    neutral: Sequence[str] = ()
    accepts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    differs: Mapping[str, Any] = field(default_factory=dict)  # defaults of the class that `only` refuses
    grid: str = "diffusers"  # its levels in a video, see `sampling/motion.py`

    def settings(self) -> set[str]:
        """Return the names of all settings of the class."""
        return {*self.read, *self.only, *self.neutral}


_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
_TABLE = {"beta_schedule": "scaled_linear", "trained_betas": None, "rescale_betas_zero_snr": False}
_LINEAR = {"beta_schedule": "linear"}
_GRIDS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_CLIPS = {"clip_sample": False, "thresholding": False}
_OF_CLIPS = ("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value")
_STUDENT = {
    **_BETAS, "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon", "original_inference_steps": 50,
}  # fmt: skip

SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        "flow-match-euler",
        {
            "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5,
            "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096, "time_shift_type": "exponential",
            "stochastic_sampling": False,
        },
        {**_GRIDS, "invert_sigmas": False, "shift_terminal": None},
        accepts={"time_shift_type": ("exponential",)},
    ),
    "EulerDiscreteScheduler": Scheduler(
        "euler",
        {
            **_BETAS, "prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0,
            "final_sigmas_type": "zero",
        },
        {**_TABLE, **_GRIDS, "interpolation_type": "linear", "timestep_type": "discrete"},
        ("sigma_min", "sigma_max"),  # of continuous timesteps and Karras' levels
        {"prediction_type": PREDICTIONS, "final_sigmas_type": ("zero", "sigma_min"), "steps_offset": (0, 1)},
        _LINEAR,
    ),
    "EulerAncestralDiscreteScheduler": Scheduler(
        "euler-ancestral",
        {**_BETAS, "prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0},
        _TABLE,
        (),
        {"prediction_type": ("epsilon", "v_prediction"), "steps_offset": (0, 1)},
        _LINEAR,
    ),
    "DDIMScheduler": Scheduler(
        "ddim",
        {
            **_BETAS, "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0,
            "set_alpha_to_one": True,
        },
        {**_TABLE, **_CLIPS},
        _OF_CLIPS,
        {"prediction_type": PREDICTIONS, "steps_offset": (0, 1)},
        {**_LINEAR, "clip_sample": True},
    ),
    "LCMScheduler": Scheduler(
        "lcm",
        {**_STUDENT, "timestep_scaling": 10.0},
        {**_TABLE, **_CLIPS},
        (*_OF_CLIPS, "timestep_spacing", "steps_offset", "set_alpha_to_one"),  # LCM has timesteps of its own
        {"prediction_type": PREDICTIONS},
    ),
    "TCDScheduler": Scheduler(
        "tcd",
        _STUDENT,
        _TABLE,  # TCD never clips, whatever its settings say
        (
            *_OF_CLIPS, *_CLIPS, "timestep_spacing", "steps_offset", "set_alpha_to_one", "timestep_scaling",
        ),
        {"prediction_type": PREDICTIONS},
    ),
    "DPMSolverMultistepScheduler": Scheduler(
        "dpm++2m",
        {**_BETAS, "prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0},
        {
            **_TABLE, **_GRIDS, "solver_order": 2, "thresholding": False, "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint", "use_lu_lambdas": False, "use_flow_sigmas": False, "final_sigmas_type": "zero",
            "variance_type": None, "use_dynamic_shifting": False, "lambda_min_clipped": float("-inf"),
        },
        (
            "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type",
            "lower_order_final", "euler_at_final",  # with a last level of 0 the last step is of first order anyway
        ),
        {"prediction_type": PREDICTIONS, "steps_offset": (0, 1)},
        _LINEAR,
    ),
    "UniPCMultistepScheduler": Scheduler(
        "flow-match-euler",  # Wan's students are played in Euler steps
        {"num_train_timesteps": 1000, "flow_shift": 1.0},
        {
            **_GRIDS, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero",
            "thresholding": False, "predict_x0": True, "use_dynamic_shifting": False, "shift_terminal": None,
            "solver_p": None, "sigma_min": None, "sigma_max": None, "solver_order": 2, "solver_type": "bh2",
            "lower_order_final": True, "disable_corrector": [],
        },
        (
            # of networks that were trained on betas
            "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr", "timestep_spacing",
            "steps_offset", "dynamic_thresholding_ratio", "sample_max_value", "time_shift_type",
        ),
        differs={"prediction_type": "epsilon", "use_flow_sigmas": False},
        grid="unipc",
    ),
}  # fmt: skip
KNOWN = {name for row in SCHEDULERS.values() for name in row.settings()}
FOREIGN = {"skip_prk_steps", "use_lu_lambdas", "variance_type", "euler_at_final"}  # in configs of other classes


def read_scheduler(config: Mapping[str, Any], name: str) -> tuple[Scheduler, dict[str, Any]]:
    """Return the row of the class `name`, and its settings with the class's defaults.

    `config` is a scheduler_config.json. It may hold settings of other classes, which diffusers ignores. Raises
    CheckpointError for a setting that the sampler does not support, and for one that no known class has.
    """
    row = SCHEDULERS[name]
    for key in config:
        if not key.startswith("_") and key not in KNOWN | FOREIGN:
            raise CheckpointError(
                f"{FILE} sets {key} to {str(config[key])[:40]!r}, a setting that this Segue does not know. "
                "Use a newer Segue, or remove the key if the model does not need it."
            )
    for key, wanted in row.only.items():
        found = config.get(key, row.differs.get(key, wanted))
        if not _equal(found, wanted):
            raise unsupported(key, found, [wanted])
    found = {key: default if config.get(key) is None else config[key] for key, default in row.read.items()}
    for key, default in row.read.items():
        if not _alike(found[key], default):
            raise unsupported(key, found[key], [default])
    for key, values in row.accepts.items():
        if found[key] not in values:
            raise unsupported(key, found[key], values)
    return row, found


def noise_prediction(found: Mapping[str, Any]) -> NoisePrediction:
    """Return the training and sampling that the settings of `read_scheduler` describe."""
    last = found.get("final_sigmas_type", "zero") == "sigma_min" or not found.get("set_alpha_to_one", True)
    return NoisePrediction(
        (float(found["beta_start"]), float(found["beta_end"])), str(found.get("timestep_spacing", "leading")),
        int(found.get("steps_offset", 0)), str(found["prediction_type"]), (), "first" if last else "zero",
        int(found.get("original_inference_steps", 50)), float(found.get("timestep_scaling", 10.0)),
    )  # fmt: skip


def _equal(found: Any, wanted: Any) -> bool:
    return found is None or found == wanted or (isinstance(wanted, float) and str(found) == str(wanted))


def _alike(found: Any, default: Any) -> bool:
    """Return whether a setting has the kind of its default: a finite number, a truth or a word."""
    if isinstance(default, bool | str):
        return isinstance(found, type(default))
    return isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 2**53  # no NaN either


def unsupported(key: str, found: Any, values: Sequence[Any]) -> CheckpointError:
    """Return the error for a setting of a scheduler_config.json that must have one of `values`."""
    wanted = " or ".join(json.dumps(value) for value in values)
    return CheckpointError(
        f"{FILE} sets {key} to {found!r}, which the sampler does not support. "
        f"Export a checkpoint whose scheduler has {key}: {wanted}."
    )
