import numpy as np
import pytest

from segue.errors import UsageError
from segue.runtime.sampling.reference import hybrid_reference, upsampled


def frames(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def test_the_first_frame_is_the_image_itself_and_the_others_are_stage_ones():
    image, low = frames(1, 32)[0], frames(5, 8, seed=1)
    made = list(hybrid_reference(low, image))
    assert len(made) == 5
    assert np.array_equal(made[0], image)
    for found, frame in zip(made[1:], low[1:], strict=True):
        assert np.array_equal(found, upsampled(frame, 32, 32))


def test_frames_are_taken_as_they_are_asked_for():
    taken = []

    def low():
        for number, frame in enumerate(frames(4, 8)):
            taken.append(number)
            yield frame

    made = hybrid_reference(low(), frames(1, 16)[0])
    next(made)
    next(made)
    assert taken == [0, 1]


def test_upsampling_keeps_a_ramp_and_never_leaves_the_range():
    ramp = np.broadcast_to(np.linspace(-1, 1, 16, dtype=np.float32)[:, None, None], (16, 16, 3)).copy()
    found = upsampled(ramp, 64, 48)
    assert found.dtype == np.float32
    assert found.shape == (64, 48, 3)
    expected = ((np.arange(64) + 0.5) / 4 - 0.5) / 15 * 2 - 1  # pixel centres
    assert np.allclose(found[8:-8, 24, 1], expected[8:-8], atol=1e-5)
    edge = np.where(np.arange(16) < 8, -1, 1).astype(np.float32)[:, None, None].repeat(16, 1).repeat(3, 2)
    assert np.abs(upsampled(edge, 64, 64)).max() == 1.0


def test_another_kind_of_frame_is_refused():
    with pytest.raises(UsageError, match=r"got uint8 \[8, 8, 3\]"):
        list(hybrid_reference(frames(2, 8), np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(UsageError, match=r"got float32 \[8, 8\]"):
        upsampled(np.zeros((8, 8), np.float32), 16, 16)
