"""The network here is a known function of its window: what a segment was shown can be read from what it made."""

from functools import partial

import numpy as np
import pytest

from segue.runtime.bundle.segments import Segment, SegmentSpec, count_segments, segment
from segue.runtime.sampling.csg import denoise, generate
from segue.runtime.sampling.noise import philox_normal
from segue.runtime.sampling.schedule import custom_schedule

CHANNELS, SIDE = 2, 3
SCHEDULE = custom_schedule([1.0, 0.75, 0.5, 0.25], 5.0, 1000)


class Recorder:
    """A velocity that leads every noisy frame to its reference, and remembers what it was shown."""

    def __init__(self) -> None:
        self.windows: list[np.ndarray] = []
        self.timesteps: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []

    def __call__(self, latents: np.ndarray, timesteps: np.ndarray, positions: np.ndarray) -> np.ndarray:
        self.windows.append(latents.copy())
        self.timesteps.append(timesteps.copy())
        self.positions.append(positions.copy())
        seen, reference = latents[:, :CHANNELS], latents[:, CHANNELS:]
        sigma = np.maximum(timesteps, 1e-6)[:, None, :, None, None] / 1000
        return ((seen - reference) / sigma).astype(np.float32)


def frames(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, SIDE, SIDE)).astype(np.float32).swapaxes(0, 1)


def noise(wanted: range) -> np.ndarray:
    return np.stack([philox_normal((CHANNELS, SIDE, SIDE), 7, image) for image in wanted], 1)


def clip(latent: int, spec: SegmentSpec, velocity, **more) -> list[tuple[Segment, np.ndarray]]:
    image, whole = frames(1, 0), frames(latent, 1)
    one = partial(denoise, velocity, SCHEDULE)
    return list(generate(one, image, lambda r: whole[:, list(r)], noise, latent, spec, **more))


@pytest.mark.parametrize("spec", [SegmentSpec(), SegmentSpec(2, 3), SegmentSpec(3, 1, 1), SegmentSpec(4, 0)])
def test_every_frame_is_made_from_its_own_reference(spec: SegmentSpec) -> None:
    made = clip(12, spec, Recorder())
    assert [part for part, _ in made] == [segment(i, 12, spec) for i in range(count_segments(12, spec))]
    assert np.allclose(np.concatenate([found for _, found in made], 1), frames(12, 1)[:, 1:], atol=1e-5)


def test_a_window_is_the_image_what_was_made_and_the_noise_beside_the_reference() -> None:
    spec, seen, whole = SegmentSpec(3, 2, 1), Recorder(), frames(12, 1)
    made = clip(12, spec, seen)
    part = segment(2, 12, spec)
    window = seen.windows[2 * SCHEDULE.steps][0]
    image = frames(1, 0)
    before = made[1][1][:, -2:]
    assert np.array_equal(window[:CHANNELS, :3], np.concatenate([image, before], 1))
    assert np.array_equal(window[CHANNELS:, :3], window[:CHANNELS, :3])  # a clean frame is its own reference
    assert np.array_equal(window[:CHANNELS, 3:6], noise(part.targets))
    assert np.array_equal(window[:CHANNELS, 6:], whole[:, 10:11])
    assert np.array_equal(window[CHANNELS:, 3:], whole[:, 7:11])
    assert seen.positions[2 * SCHEDULE.steps].tolist() == [[0, 5, 6, 7, 8, 9, 10]]


def test_clean_frames_stay_clean_at_timestep_0_while_the_targets_fall() -> None:
    seen = Recorder()
    clip(7, SegmentSpec(), seen)
    for step in range(SCHEDULE.steps):
        assert seen.timesteps[SCHEDULE.steps + step].tolist() == [[0, 0, *[SCHEDULE.timesteps[step]] * 3]]
        assert np.array_equal(seen.windows[SCHEDULE.steps + step][:, :, :2], seen.windows[SCHEDULE.steps][:, :, :2])


def test_a_clip_that_goes_on_at_a_later_segment_is_the_same_clip() -> None:
    spec = SegmentSpec(3, 2)
    whole = clip(14, spec, Recorder())
    for begin in range(1, len(whole)):
        before = np.concatenate([found for _, found in whole[:begin]], 1)
        rest = clip(14, spec, Recorder(), begin=begin, before=before)
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(rest, whole[begin:], strict=True))


def test_the_frames_of_a_short_clip_are_those_of_a_longer_one() -> None:
    """Noise and positions belong to the frame, so what was made does not depend on what comes later."""
    short, long = (clip(latent, SegmentSpec(), Recorder()) for latent in (7, 13))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(short, long, strict=False))


def test_nothing_is_held_but_the_neighbours() -> None:
    asked: list[range] = []
    whole = frames(40, 1)

    def reference(wanted: range) -> np.ndarray:
        asked.append(wanted)
        return whole[:, list(wanted)]

    seen = Recorder()
    for _ in generate(partial(denoise, seen, SCHEDULE), frames(1, 0), reference, noise, 40, SegmentSpec()):
        assert len(asked) * 3 <= seen.positions[-1].max() + 1  # no segment was begun before it was asked for
    assert [frame for run in asked for frame in run] == list(range(1, 40))
    assert max(window.shape[2] for window in seen.windows) == 5


def test_one_segment_alone_is_denoise() -> None:
    part, image, whole = segment(0, 4, SegmentSpec()), frames(1, 0), frames(4, 1)
    alone = denoise(Recorder(), SCHEDULE, part, image, whole[:, 1:], noise(part.targets))
    assert np.array_equal(alone, clip(4, SegmentSpec(), Recorder())[0][1])
