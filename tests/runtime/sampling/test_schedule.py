import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import UsageError
from segue.runtime.bundle.manifest import NoisePrediction, StepShift
from segue.runtime.sampling import schedule as sampler
from segue.runtime.sampling.recurrence import sample
from segue.runtime.sampling.samplers import beta_schedule

SHIFTS = [0.5, 1.0, 1.15, 2.7, 3.0, 6.0, 12.0]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("train", [1000, 777])
def test_the_default_grid_is_diffusers_to_the_bit(shift, train):
    for steps in [*range(1, 51), 100, 333, 1000]:
        theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=train, shift=shift)
        theirs.set_timesteps(steps)
        ours = sampler.default_schedule(steps, shift, train)
        assert np.array_equal(ours.sigmas, theirs.sigmas.numpy()), steps
        assert np.array_equal(ours.timesteps, theirs.timesteps.numpy()), steps
        assert ours.sigmas.dtype == ours.timesteps.dtype == np.float32


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60, unique=True),
    st.one_of(st.sampled_from(SHIFTS), st.floats(0.1, 20)),
)
def test_custom_sigmas_are_diffusers_to_the_bit(sigmas, shift):
    sigmas = sorted(sigmas, reverse=True)
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=sigmas)
    ours = sampler.custom_schedule(sigmas, shift, 1000)
    assert np.array_equal(ours.sigmas, theirs.sigmas.numpy())
    assert np.array_equal(ours.timesteps, theirs.timesteps.numpy())


@pytest.mark.parametrize(
    "sigmas", [[], [0.5, 0.0], [1.5, 1.0], [0.5, 0.5], [0.2, 0.9], [float("nan")], [[0.5]], ["a"], None]
)
def test_sigmas_that_do_not_fall_within_range_are_refused(sigmas):
    with pytest.raises(UsageError, match="strictly decrease"):
        sampler.custom_schedule(sigmas, 3.0, 1000)


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps):
    with pytest.raises(UsageError, match=f"steps must be .*, got {steps}"):
        sampler.default_schedule(steps, 3.0, 1000)


def test_euler_carries_latents_as_the_scheduler_does_to_the_bit():
    rng = np.random.default_rng(3)
    start = rng.standard_normal((2, 4, 5, 6)).astype(np.float32)
    field = rng.standard_normal((2, 4, 5, 6)).astype(np.float32)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(9)
    expected = torch.from_numpy(start)
    for t in theirs.timesteps:
        velocity = torch.from_numpy(field) * expected + t / 1000
        expected = theirs.step(velocity, t, expected, return_dict=False)[0]
    seen = []
    found = sample(
        lambda x, t: field * x + t / np.float32(1000),
        start,
        sampler.default_schedule(9, 3.0, 1000),
        lambda step, x: seen.append((step, x.shape)),
    )
    assert np.array_equal(found, expected.numpy())
    assert seen == [(i, start.shape) for i in range(1, 10)]


def test_guidance_is_the_pipelines_formula_to_the_bit():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    assert np.array_equal(sampler.guide(a, b, 4.7), (ta + 4.7 * (tb - ta)).numpy())


def test_shift_takes_torch_tensors_too():
    levels = torch.linspace(0, 1, 11)
    assert np.array_equal(sampler.shift_sigmas(levels, 3.0).numpy(), sampler.shift_sigmas(levels.numpy(), 3.0))


def exploding(steps, spacing, offset):
    return beta_schedule("euler", steps, NoisePrediction((0.00085, 0.012), spacing, offset), 1000)


@given(st.integers(1, 500), st.sampled_from(["trailing", "leading", "linspace"]))
def test_exploding_levels_are_as_many_as_asked_for_and_fall(steps, spacing):
    schedule = exploding(steps, spacing, 1 if spacing == "leading" else 0)
    assert schedule.steps == steps == len(schedule.sigmas) - 1
    assert np.all(np.diff(schedule.sigmas) < 0)
    assert schedule.sigmas[-1] == 0


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 7, 30])
def test_exploding_levels_are_those_of_diffusers(steps, spacing):
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing=spacing, steps_offset=1
    )
    theirs.set_timesteps(steps)
    ours = exploding(steps, spacing, 1)
    assert np.allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=3e-5)  # theirs multiply in float32
    assert np.allclose(ours.timesteps, theirs.timesteps.numpy())
    assert ours.scale == pytest.approx(float(theirs.init_noise_sigma), rel=3e-5)


@given(st.integers(4, 5000))
def test_a_shift_from_tokens_is_that_of_diffusers(tokens):
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import calculate_shift

    ours = sampler.token_shift(tokens, (256, 4096), (0.5, 1.15))
    assert ours == pytest.approx(np.exp(calculate_shift(tokens)), rel=1e-9)


FLUX2 = StepShift((10, 200), (8.73809524e-05, 0.00016927), (1.89833333, 0.45666666), 4300)


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 20_000), st.integers(1, 300))
def test_a_shift_from_tokens_and_steps_is_that_of_diffusers(tokens, steps):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    mu = compute_empirical_mu(tokens, steps)
    assert sampler.step_shift(tokens, steps, FLUX2) == pytest.approx(np.exp(mu), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 9, 28, 50])
@pytest.mark.parametrize("side", [64, 256, 512, 768, 1024, 1056, 1536, 2048])  # 1056 and above: over 4300 tokens
def test_the_levels_of_flux_2_are_those_of_its_pipeline(side, steps):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    tokens = (side // 16) ** 2
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    shift = sampler.step_shift(tokens, steps, FLUX2)
    ours = sampler.custom_schedule(np.linspace(1, 1 / steps, steps), shift, 1000)
    assert np.abs(ours.sigmas - theirs.sigmas.numpy()).max() <= 1e-6
    assert np.abs(ours.timesteps - theirs.timesteps.numpy()).max() <= 1e-3


def test_guided_tokens_are_no_longer_than_conditional_ones():
    rng = np.random.default_rng(0)
    negative, positive = rng.standard_normal((2, 1, 4, 4, 6)).astype(np.float32)
    found = sampler.guide_renormalised(negative, positive, 4.0, 2)
    plain = sampler.guide(negative, positive, 4.0)
    for row in range(0, 4, 2):
        for column in range(0, 6, 2):
            where = (0, slice(None), slice(row, row + 2), slice(column, column + 2))
            most, have = np.linalg.norm(positive[where]), np.linalg.norm(found[where])
            assert have <= most * (1 + 1e-5)
            assert np.allclose(found[where] / have, plain[where] / np.linalg.norm(plain[where]), atol=1e-5)
