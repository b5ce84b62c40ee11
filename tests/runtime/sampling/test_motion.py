import numpy as np
import pytest

from segue.errors import UsageError
from segue.runtime.sampling.motion import expert_of, generate, image_mask
from segue.runtime.sampling.schedule import custom_schedule

SCHEDULE = custom_schedule([1.0, 0.75, 0.5, 0.25], 5.0, 1000)


def test_the_mask_is_that_of_diffusers_pipeline() -> None:
    """Its steps on video frames: 1 for the first, 0 for the others, the first one repeated four times."""
    frames, height, width = 4, 2, 3
    video = np.zeros((1, 1, 4 * frames - 3, height, width), np.float32)
    video[:, :, 0] = 1
    video = np.concatenate([video[:, :, :1].repeat(4, 2), video[:, :, 1:]], 2)
    expected = video.reshape(1, -1, 4, height, width).swapaxes(1, 2)[0]
    assert np.array_equal(image_mask(frames, height, width), expected)


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
