"""The clean picture that a step expects, from the latents before and after it, beside diffusers' own."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch

from segue.export.families.schedulers import noise_prediction, read_scheduler
from segue.runtime.sampling.recurrence import sample, watched
from segue.runtime.sampling.samplers import beta_schedule
from segue.runtime.sampling.schedule import custom_schedule, renoised
from support.samplers import CASES, NOISE, SDXL, network, relative

# Levels that lie between those of the next step (a last level above 0, or a spacing that does not divide 1000)
NEAR = {"euler, last level of the training": 5e-3, "ddim, trailing (Hyper-SD)": 1e-2, "ddim, SDXL's last level": 1e-2}
NEAR |= {case: 1e-2 for case in CASES if case.startswith("tcd")} | {case: 2e-3 for case in CASES if "lcm" in case}
SHOWN = [case for case in CASES if not case.startswith("dpm")]  # diffusers' DPM-Solver++ does not tell its estimate


def fresh(step):
    return NOISE[step + 1]


def estimates(schedule, denoise=network):
    """Return the estimate of each step."""
    found = []
    callback = watched(lambda step, latents, moment: found.append(moment.estimate()), schedule, NOISE[0], fresh)
    sample(denoise, NOISE[0], schedule, callback, fresh)
    return found


def theirs(scheduler, steps, **options):
    """Return the estimate of the clean picture that each of diffusers' steps makes."""
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    drawn = iter(NOISE[1:])
    module.randn_tensor = lambda *_, **__: torch.from_numpy(next(drawn)).double()
    scheduler.set_timesteps(num_inference_steps=steps)
    x, found = torch.from_numpy(NOISE[0]).double() * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps[:steps]:
        seen = scheduler.scale_model_input(x, timestep).float().numpy()
        made = torch.from_numpy(network(seen, float(timestep))).double()
        if isinstance(scheduler, diffusers.TCDScheduler):  # which tells a point on the way instead
            kept = scheduler.alphas_cumprod[int(timestep)].double()
            found.append((x - (1 - kept).sqrt() * made) / kept.sqrt())
            x = scheduler.step(made, timestep, x, return_dict=False, **options)[0]
        else:
            after, clean = scheduler.step(made, timestep, x, return_dict=False, **options)
            found.append(clean)
            x = after
    return [one.numpy() for one in found]


@pytest.mark.parametrize("steps", [2, 4, 7])
@pytest.mark.parametrize("case", SHOWN)
def test_the_estimate_is_that_of_diffusers(case, steps):
    name, config, options = CASES[case]
    row, settings = read_scheduler(SDXL | config, name)
    spec = dataclasses.replace(noise_prediction(settings), **options)
    expected = theirs(getattr(diffusers, name)(**SDXL | config), steps, **options)
    found = estimates(beta_schedule(row.sampler, steps, spec, 1000))
    assert len(found) == steps
    assert max(relative(one, other) for one, other in zip(found, expected, strict=True)) <= NEAR.get(case, 2e-6)


@pytest.mark.parametrize("anew", [False, True])
def test_flow_matching_expects_the_latents_minus_the_velocity_times_sigma(anew):
    plain = custom_schedule([1.0, 0.75, 0.45, 0.15], 3.0, 1000)
    seen = []

    def denoise(latents, timestep):
        made = network(latents, timestep)
        seen.append(latents - np.float32(timestep / 1000) * made)
        return made

    found = estimates(renoised(plain) if anew else plain, denoise)
    assert max(relative(one, other) for one, other in zip(found, seen, strict=True)) <= 2e-6


def test_the_last_estimate_is_the_picture_and_dpm_finds_a_picture_that_the_network_knows():
    _, settings = read_scheduler(SDXL | {"prediction_type": "epsilon"}, "DPMSolverMultistepScheduler")
    schedule = beta_schedule("dpm++2m", 5, noise_prediction(settings), 1000)
    level, known = iter(schedule.sigmas.astype(np.float64)), NOISE[9]

    def denoise(latents, timestep):
        s = next(level)
        return ((latents * np.hypot(1, s) - known) / s).astype(np.float32)

    assert max(relative(one, known) for one in estimates(schedule, denoise)) <= 1e-4
    euler = custom_schedule([1.0, 0.5], 1.0, 1000)
    assert np.array_equal(estimates(euler)[-1], sample(network, NOISE[0], euler))


def test_what_a_mask_keeps_is_estimated_as_it_is():
    schedule, kept = custom_schedule([1.0, 0.7, 0.3], 1.0, 1000), NOISE[5]
    found = []
    callback = watched(lambda step, latents, moment: found.append(moment.estimate()), schedule, NOISE[0], fresh)
    sample(network, NOISE[0], schedule, callback, None, lambda step, latents: schedule.mixed(step, kept, NOISE[0]))
    assert max(relative(one, kept) for one in found) <= 1e-5
