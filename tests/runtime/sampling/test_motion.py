import numpy as np
import pytest

from segue.errors import UsageError
from segue.runtime.bundle.manifest import Sampler
from segue.runtime.sampling.motion import (
    expert_of,
    experts_of,
    generate,
    generate_after,
    image_mask,
    schedule,
)
from segue.runtime.sampling.schedule import RENOISED, custom_schedule

SCHEDULE = custom_schedule([1.0, 0.75, 0.5, 0.25], 5.0, 1000)


def test_the_mask_is_that_of_diffusers_pipeline() -> None:
    """Its steps on video frames: 1 for the first, 0 for the others, the first one repeated four times."""
    frames, height, width = 4, 2, 3
    video = np.zeros((1, 1, 4 * frames - 3, height, width), np.float32)
    video[:, :, 0] = 1
    video = np.concatenate([video[:, :, :1].repeat(4, 2), video[:, :, 1:]], 2)
    expected = video.reshape(1, -1, 4, height, width).swapaxes(1, 2)[0]
    assert np.array_equal(image_mask(frames, height, width), expected)


def test_the_mask_of_a_last_picture_is_that_of_diffusers_pipeline() -> None:
    frames, height, width = 4, 2, 3
    video = np.ones((1, 1, 4 * frames - 3, height, width), np.float32)
    video[:, :, 1:-1] = 0
    video = np.concatenate([video[:, :, :1].repeat(4, 2), video[:, :, 1:]], 2)
    expected = video.reshape(1, -1, 4, height, width).swapaxes(1, 2)[0]
    assert np.array_equal(image_mask(frames, height, width, last=True), expected)


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_the_levels_are_those_of_the_checkpoints_scheduler(steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    euler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    euler.set_timesteps(steps)
    found = schedule(Sampler("flow-match-euler", 5.0, 1000, steps, 1.0, grid="diffusers"))
    assert np.array_equal(found.sigmas, euler.sigmas.numpy())
    assert np.array_equal(found.timesteps, euler.timesteps.numpy())
    unipc = UniPCMultistepScheduler(flow_shift=5.0, prediction_type="flow_prediction", use_flow_sigmas=True)
    unipc.set_timesteps(steps)
    found = schedule(Sampler("flow-match-euler", 5.0, 1000, steps, 1.0, grid="unipc"))
    assert np.allclose(found.sigmas, unipc.sigmas.numpy(), atol=2e-6)  # diffusers begins 1e-6 below 1


def test_evenly_spaced_levels_stay_those_of_earlier_bundles() -> None:
    for steps in (2, 3, 7):
        found = schedule(Sampler("flow-match-euler", 5.0, 1000, steps, 1.0))
        expected = custom_schedule([1 - i / steps for i in range(steps)], 5.0, 1000)
        assert np.array_equal(found.sigmas, expected.sigmas)


def test_levels_after_the_shift_are_levels_before_it_moved_back() -> None:
    """FastWan's card names timesteps 1000, 757 and 522 after the shift."""
    after = np.array([1.0, 0.757, 0.522])
    before = tuple(after / (5 - 4 * after))
    found = schedule(Sampler(RENOISED, 5.0, 1000, 3, 1.0, before))
    assert np.allclose(found.timesteps, [1000, 757, 522], atol=1e-3)
    assert np.allclose(found.fresh, [0.757, 0.522, 0], atol=1e-6)


def test_four_steps_are_two_of_each_expert() -> None:
    student = Sampler("flow-match-euler", 5.0, 1000, 4, 1.0, (1.0, 0.75, 0.5, 0.25))
    assert experts_of(student, 2, 0.9) == [0, 0, 1, 1]
    assert experts_of(student, 2, 0.95) == [0, 1, 1, 1]
    assert experts_of(student, 1, 0.9) == [0, 0, 0, 0]


def test_a_given_latent_frame_is_shown_at_timestep_zero_and_kept() -> None:
    rng = np.random.default_rng(0)
    noise, goal = (rng.standard_normal((2, 3, 2, 2)).astype(np.float32) for _ in range(2))
    image, seen = goal[:, :1] + 1, []

    def velocity(step: int, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        seen.append((latents.copy(), times.copy()))
        return (latents - goal) / (times[0, -1] / 1000)

    made = generate_after(velocity, noise, image, SCHEDULE)
    assert np.array_equal(made[:, :1], image)
    assert np.allclose(made[:, 1:], goal[:, 1:], atol=1e-5)
    assert all(np.array_equal(latents[0, :, :1], image) for latents, _ in seen)
    assert [times.tolist() for _, times in seen] == [[[0, t, t]] for t in SCHEDULE.timesteps.tolist()]
    alone = generate_after(velocity, noise, None, SCHEDULE)
    assert np.allclose(alone, goal, atol=1e-5)
    assert seen[-1][1].tolist() == [[float(SCHEDULE.timesteps[-1])] * 3]


def test_on_the_four_step_grid_each_expert_makes_two_calls() -> None:
    assert [expert_of(t, 2, 1000) for t in SCHEDULE.timesteps] == [0, 0, 1, 1]
    assert [expert_of(t, 1, 1000) for t in SCHEDULE.timesteps] == [0, 0, 0, 0]
    with pytest.raises(UsageError, match="one or two experts, got 3"):
        expert_of(0.5, 3, 1000)


def test_the_network_sees_noise_mask_and_image_and_leads_to_what_it_says() -> None:
    rng = np.random.default_rng(0)
    noise, image, goal = (rng.standard_normal((2, 3, 2, 2)).astype(np.float32) for _ in range(3))
    seen: list[tuple[int, np.ndarray, float]] = []

    def velocity(step: int, latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        seen.append((step, latents.copy(), float(timestep[0])))
        return (latents[:, :2] - goal) / (timestep[0] / 1000)

    made = generate(velocity, noise, image, SCHEDULE)
    assert np.allclose(made, goal, atol=1e-5)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert np.array_equal(seen[0][1][0], np.concatenate([noise, image_mask(3, 2, 2), image]))
    assert all(np.array_equal(latents[0, 2:], seen[0][1][0, 2:]) for _, latents, _ in seen)
    assert [t for _, _, t in seen] == SCHEDULE.timesteps.tolist()
