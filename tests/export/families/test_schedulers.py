"""Each setting of a scheduler is read, or must have one value, or has no effect; and each is one of diffusers'."""

import inspect

import diffusers
import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint.read import Settings
from segue.export.families.sampler import flow_sampler
from segue.export.families.schedulers import SCHEDULERS, read_scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_settings_and_their_defaults_are_those_of_diffusers(name):
    """A new release with another setting or default fails here, instead of drawing another picture."""
    row = SCHEDULERS[name]
    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert row.settings() == set(signature) - {"self"}
    for key, default in {**row.only, **row.differs, **row.read}.items():
        assert signature[key].default == default, key


@pytest.mark.parametrize(
    ("name", "config", "key"),
    [
        ("EulerDiscreteScheduler", {}, "beta_schedule"),  # the class's own default is linear
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type"),
        ("EulerDiscreteScheduler", {"prediction_type": "noise"}, "prediction_type"),
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("LCMScheduler", {"thresholding": True}, "thresholding"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.02}, "shift_terminal"),
        ("UniPCMultistepScheduler", {}, "prediction_type"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": False}, "use_flow_sigmas"),
        ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("UniPCMultistepScheduler", {"thresholding": True}, "thresholding"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "solver_order"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0"),
        ("FlowMatchEulerDiscreteScheduler", {"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": "three"}, "shift"),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": float("inf")}, "num_train_timesteps"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": "False"}, "use_dynamic_shifting"),
        ("EulerDiscreteScheduler", {"beta_start": [0.1]}, "beta_start"),
        ("EulerDiscreteScheduler", {"timestep_spacing": 1}, "timestep_spacing"),
    ],
)
def test_a_setting_that_changes_the_picture_is_refused_by_its_name(name, config, key):
    flow = (
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if name.startswith("UniPC") and config else {}
    )
    betas = {"beta_schedule": "scaled_linear"} if config and not flow else {}
    betas |= {"clip_sample": False} if name == "DDIMScheduler" else {}
    with pytest.raises(CheckpointError, match=key):
        read_scheduler({**flow, **betas, **config}, name)


def test_settings_of_other_classes_are_ignored_as_diffusers_ignores_them():
    published = {
        "_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "clip_sample": True,
        "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "sample_max_value": 1.0,
    }  # fmt: skip
    assert read_scheduler(published, "EulerDiscreteScheduler")[1]["steps_offset"] == 1


def test_a_flow_shift_of_zero_is_left_to_the_check_of_the_bundle():
    settings = Settings(steps=4, guidance=1.0)
    assert flow_sampler(settings, {"flow_shift": 0, "num_train_timesteps": 1000}).shift == 0
    assert flow_sampler(settings, {"shift": 3, "num_train_timesteps": 1000}).shift == 3
