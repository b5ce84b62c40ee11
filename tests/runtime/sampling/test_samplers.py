"""Every sampler takes the steps of diffusers' scheduler of the same name, with the same noise."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch

from segue.errors import UsageError
from segue.export.families.schedulers import SCHEDULERS, noise_prediction, read_scheduler
from segue.runtime.bundle.manifest import NoisePrediction
from segue.runtime.sampling.recurrence import sample
from segue.runtime.sampling.samplers import SAMPLERS, beta_schedule
from segue.runtime.sampling.schedule import custom_schedule, renoised
from support.samplers import NOISE, SDXL, STEPS, WHOLE, difference, network, ours, relative, theirs


@pytest.mark.parametrize(("case", "steps"), WHOLE)
def test_a_sampler_takes_the_steps_of_diffusers(case, steps):
    assert difference(case, steps) <= 1e-6


@pytest.mark.parametrize(
    ("timesteps", "steps"), [((999, 749, 499, 249), 4), ((399,), 1), ((800,), 1)], ids=["DMD2", "DMD2 1", "Hyper-SD 1"]
)
def test_lcm_takes_the_timesteps_of_a_student(timesteps, steps):
    _, settings = read_scheduler(SDXL, "LCMScheduler")
    prediction = dataclasses.replace(noise_prediction(settings), timesteps=timesteps)
    expected = theirs(diffusers.LCMScheduler(**SDXL), steps, NOISE[0], timesteps=list(timesteps))
    assert relative(ours("lcm", steps, prediction), expected) <= 1e-6


@pytest.mark.parametrize("steps", STEPS)
def test_flow_matching_that_noises_anew_takes_the_steps_of_diffusers(steps, monkeypatch):
    sigmas = [1 - i / steps for i in range(steps)]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=sigmas)
    drawn, module = iter(NOISE[1:]), diffusers.schedulers.scheduling_flow_match_euler_discrete
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(drawn)))
    x = torch.from_numpy(NOISE[0])
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(network(x.numpy(), float(timestep))), timestep, x, return_dict=False)[0]
    schedule = renoised(custom_schedule(sigmas, 3.0, 1000))
    found = sample(network, NOISE[0], schedule, noise=lambda step: NOISE[step + 1])
    assert relative(found, x.double().numpy()) <= 1e-6


def test_euler_has_the_bits_of_its_plain_formula():
    schedule = beta_schedule("euler", 5, noise_prediction(read_scheduler(SDXL, "EulerDiscreteScheduler")[1]), 1000)
    latents = NOISE[0] * np.float32(schedule.scale)
    for i, timestep in enumerate(schedule.timesteps):
        sigma, following = schedule.sigmas[i : i + 2]
        latents = latents + (following - sigma) * network(latents / np.sqrt(sigma**2 + 1), timestep)
    assert np.array_equal(sample(network, NOISE[0], schedule), latents)


def test_fresh_noise_is_asked_for_only_where_a_step_adds_some():
    asked = []
    prediction = noise_prediction(read_scheduler(SDXL, "LCMScheduler")[1])
    sample(network, NOISE[0], beta_schedule("lcm", 4, prediction, 1000), noise=lambda i: (asked.append(i), NOISE[i])[1])
    assert asked == [0, 1, 2]


def test_more_steps_than_a_student_was_distilled_at_are_refused():
    prediction = noise_prediction(read_scheduler(SDXL, "LCMScheduler")[1])
    with pytest.raises(UsageError, match="between 1 and 50"):
        beta_schedule("lcm", 51, prediction, 1000)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_has_finite_numbers_or_is_refused(kind, spacing):
    prediction = NoisePrediction((0.00085, 0.012), spacing, 1)
    for steps in (1, 2, 50, 333, 500, 998, 999, 1000):
        try:
            made = beta_schedule(kind, steps, prediction, 1000)
        except UsageError:
            assert steps > (50 if kind in ("lcm", "tcd") else 998)
            continue
        assert made.steps == steps
        arrays = (made.sigmas, made.keep, made.move, made.divisor, *(made.past or ()))
        assert all(np.isfinite(array).all() for array in arrays)


def test_each_sampler_has_a_scheduler_and_each_scheduler_a_sampler():
    assert {name: row.scheduler for name, row in SAMPLERS.items()} == {
        row.sampler: name for name, row in SCHEDULERS.items() if row.sampler in SAMPLERS
    }
