import numpy as np
import pytest
import torch
from torch import Tensor

from segue.runtime.bundle.segments import SegmentSpec
from segue.training.evaluation.video import by_frame, dynamic_degree, flicker, loop_gap, seams, warp_error

FRAMES, SIDE = 33, 48


def moving(speed: float) -> Tensor:
    """A smooth pattern that moves right by `speed` pixels a frame."""
    columns = np.arange(SIDE)[None, None, None, :] - speed * np.arange(FRAMES)[:, None, None, None]
    rows = np.arange(SIDE)[None, None, :, None]
    wave = 0.5 * np.sin(2 * np.pi * columns / 24) + 0.3 * np.cos(2 * np.pi * rows / 16)
    return torch.from_numpy(np.broadcast_to(wave, (FRAMES, 3, SIDE, SIDE)).astype(np.float32).copy())


def test_a_still_video_has_no_motion_and_a_faster_one_more():
    assert dynamic_degree(moving(0)) == 0
    assert 1.8 < dynamic_degree(moving(2)) / dynamic_degree(moving(1)) < 2.1


def test_flicker_is_what_comes_and_goes_not_what_moves_on():
    steady = moving(0.5)
    shaking = steady + 0.1 * (-1) ** torch.arange(FRAMES).view(-1, 1, 1, 1)
    assert flicker(steady) < 0.01
    assert flicker(shaking) == pytest.approx(0.2, rel=0.05)


def test_a_loop_closes_after_a_whole_period_and_not_after_a_half():
    assert loop_gap(moving(24 / (FRAMES - 1))) < 0.01
    assert loop_gap(moving(12 / (FRAMES - 1))) > 5


def test_a_jump_at_every_segment_start_is_a_seam_and_one_at_every_latent_frame_is_not():
    noise = 0.02 * torch.randn(FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    video = moving(0.5) + noise
    speckle = torch.randn(FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    torn, beaten = video.clone(), video.clone()
    for start in (13, 25):  # M = 3: the second and the third segment's first frames
        torn[start:] += 0.2 * speckle[start]
    for start in range(5, FRAMES, 4):
        beaten[start:] += 0.2 * speckle[start]
    found = seams(torn, SegmentSpec())
    assert found.ratio > 2
    assert found.chance < 0.1
    assert found.starts == 2
    assert seams(video, SegmentSpec()).ratio == pytest.approx(1, abs=0.1)
    assert seams(beaten, SegmentSpec()).ratio == pytest.approx(1, abs=0.2)
    assert seams(beaten, SegmentSpec()).chance > 0.1


def test_a_video_without_two_kinds_of_starts_has_no_seams_to_measure():
    with pytest.raises(ValueError, match="9 frames"):
        seams(moving(1)[:9], SegmentSpec())


def test_a_moving_pattern_warps_back_onto_itself_and_noise_does_not():
    pattern = moving(1)[:6]
    assert warp_error(pattern) < 0.3 * dynamic_degree(pattern)
    noise = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert warp_error(noise, truth=pattern) > 0.5


def test_drift_is_the_slope_over_frames():
    mean, slope = by_frame([0.1, 0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.25)
    assert slope == pytest.approx(0.1)
