"""Each setting of a scheduler is read, or must have one value, or has no effect; and each is one of diffusers'."""

import inspect

import diffusers
import pytest

from segue.errors import CheckpointError
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
