"""Every sampler beside diffusers' scheduler of the same name, with the same noise and the same network.

`python tests/support/samplers.py` prints the table of docs/evidence/samplers.md.
"""

import dataclasses
from unittest import mock

import diffusers
import numpy as np
import torch

from segue.export.families.schedulers import noise_prediction, read_scheduler
from segue.runtime.sampling.recurrence import sample
from segue.runtime.sampling.samplers import beta_schedule

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = [1, 2, 3, 4, 5, 6, 7, 8, 28]
NOISE = np.random.default_rng(7).standard_normal((29, 1, 4, 6, 10)).astype(np.float32)
CASES = {
    "euler, leading (SDXL)": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "euler, trailing (Lightning)": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    "euler, linspace": ("EulerDiscreteScheduler", {}, {}),
    "euler, last level of the training": ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, {}),
    "euler, sample": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"}, {}),
    "euler, v": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, {}),
    "euler ancestral, trailing (SDXL-Turbo)": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    "euler ancestral, leading": (
        "EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, {},
    ),
    "euler ancestral, v": ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, {}),
    "ddim, trailing (Hyper-SD)": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}, {}),
    "ddim, SDXL's last level": (
        "DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": False}, {},
    ),
    "ddim, leading": ("DDIMScheduler", {"steps_offset": 1, "clip_sample": False}, {}),
    "ddim, v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, {}),
    "lcm": ("LCMScheduler", {}, {}),
    "lcm, v": ("LCMScheduler", {"prediction_type": "v_prediction"}, {}),
    "lcm, sample": ("LCMScheduler", {"prediction_type": "sample"}, {}),
    "tcd, eta 0": ("TCDScheduler", {}, {"eta": 0.0}),
    "tcd, eta 0.3": ("TCDScheduler", {}, {"eta": 0.3}),
    "tcd, eta 1 (Hyper-SD, unified)": ("TCDScheduler", {}, {"eta": 1.0}),
    "dpm++ 2m, linspace": ("DPMSolverMultistepScheduler", {}, {}),
    "dpm++ 2m, leading": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "dpm++ 2m, trailing": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, {}),
    "dpm++ 2m, v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, {}),
}  # fmt: skip


def network(latents, timestep):
    """A smooth network that is not linear and depends on the timestep."""
    return np.tanh(0.7 * latents + np.float32(timestep) / 900) + 0.1 * np.cos(latents).astype(np.float32)


def theirs(scheduler, steps, latents, **options):
    """Return the latents that diffusers' loop makes; its noise of step i is NOISE[i + 1]."""
    drawn = iter(NOISE[1:])
    timesteps = options.pop("timesteps", None)
    scheduler.set_timesteps(**({"timesteps": timesteps} if timesteps else {"num_inference_steps": steps}))
    x = torch.from_numpy(latents).double() * scheduler.init_noise_sigma

    def draw(*_, **__):
        return torch.from_numpy(next(drawn)).double()

    with mock.patch(f"{type(scheduler).__module__}.randn_tensor", draw):
        for timestep in scheduler.timesteps[:steps]:
            seen = scheduler.scale_model_input(x, timestep).float().numpy()
            made = torch.from_numpy(network(seen, float(timestep))).double()
            x = scheduler.step(made, timestep, x, return_dict=False, **options)[0]
    return x.numpy()


def relative(found, expected):
    return np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected)


def ours(kind, steps, prediction):
    schedule = beta_schedule(kind, steps, prediction, 1000)
    return sample(network, NOISE[0], schedule, noise=lambda step: NOISE[step + 1])


def difference(case, steps):
    """Return the relative L2 between the latents of a case in Segue and in diffusers."""
    name, config, options = CASES[case]
    row, settings = read_scheduler(SDXL | config, name)
    prediction = dataclasses.replace(noise_prediction(settings), **options)
    return relative(
        ours(row.sampler, steps, prediction),
        theirs(getattr(diffusers, name)(**SDXL | config), steps, NOISE[0], **options),
    )


WHOLE = [(case, steps) for case in CASES for steps in STEPS]


if __name__ == "__main__":
    print("| sampler | " + " | ".join(map(str, STEPS)) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    for case in CASES:
        print(f"| {case} | " + " | ".join(f"{difference(case, steps):.0e}" for steps in STEPS) + " |")
