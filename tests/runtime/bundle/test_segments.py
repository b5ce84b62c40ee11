import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.errors import UsageError
from segue.runtime.bundle.segments import (
    Segment,
    SegmentSpec,
    count_segments,
    frames_of,
    latent_frames,
    segment,
    video_frames,
    window_frames,
)

LATENT = st.integers(1, 200)
SPECS = st.builds(SegmentSpec, st.integers(1, 12), st.integers(0, 6), st.integers(0, 4))


def segments(latent: int, spec: SegmentSpec) -> list[Segment]:
    return [segment(i, latent, spec) for i in range(count_segments(latent, spec))]


@given(LATENT, SPECS)
def test_every_latent_frame_but_the_first_is_made_exactly_once_and_in_order(latent, spec):
    made = [frame for part in segments(latent, spec) for frame in part.targets]
    assert made == list(range(1, latent))


@given(LATENT, SPECS)
def test_neighbours_before_are_made_by_then_and_those_after_are_not(latent, spec):
    known = {0}
    for part in segments(latent, spec):
        assert set(part.before) <= known
        assert not known & set(part.reference)
        assert set(part.reference) == {*part.targets, *part.after}
        known |= set(part.targets)


@given(LATENT, SPECS)
def test_a_window_rises_without_a_repeat_and_stays_in_the_clip(latent, spec):
    for part in segments(latent, spec):
        assert all(a < b for a, b in itertools.pairwise(part.frames))
        assert part.frames[0] == 0
        assert part.frames[-1] < latent
        assert part.frames[part.noisy] == tuple(part.targets)


@given(LATENT, SPECS)
def test_the_formula_counts_the_window_and_no_window_is_above_the_bound(latent, spec):
    for i, part in enumerate(segments(latent, spec)):
        bound = 1 + spec.before + spec.targets + spec.after
        assert window_frames(i, latent, spec) == len(part.frames) <= bound


@given(st.integers(1, 12), st.integers(0, 6))
def test_a_long_clip_reaches_the_bound_and_a_longer_one_does_not_pass_it(targets, before):
    spec = SegmentSpec(targets, before)
    longest = {max(len(part.frames) for part in segments(latent, spec)) for latent in (60, 120)}
    assert longest == {1 + before + targets}


def test_the_papers_clip_has_seven_segments_and_a_short_last_one():
    spec = SegmentSpec()
    found = segments(latent_frames(81), spec)
    assert [part.targets.start for part in found] == [1, 4, 7, 10, 13, 16, 19]
    assert [part.frames for part in (found[0], found[1], found[-1])] == [(0, 1, 2, 3), (0, 3, 4, 5, 6), (0, 18, 19, 20)]
    assert max(len(part.frames) for part in found) * (88 // 2) * (160 // 2) == 17_600


def test_neighbours_after_are_an_option():
    assert segment(1, 21, SegmentSpec(3, 1, 1)).frames == (0, 3, 4, 5, 6, 7)
    assert segment(6, 21, SegmentSpec(3, 1, 1)).frames == (0, 18, 19, 20)


def test_a_picture_alone_has_no_segment():
    assert count_segments(latent_frames(1), SegmentSpec()) == 0


@given(st.integers(1, 5000))
def test_video_frames_are_rounded_up_to_whole_latent_frames(frames):
    latent = latent_frames(frames)
    assert video_frames(latent - 1) < frames <= video_frames(latent)


@given(LATENT, SPECS)
def test_the_video_frames_of_all_segments_are_the_clip(latent, spec):
    shown = [*frames_of(range(1)), *(f for part in segments(latent, spec) for f in frames_of(part.targets))]
    assert shown == list(range(video_frames(latent)))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: SegmentSpec(0), "targets = 0"),
        (lambda: SegmentSpec(before=-1), "before = -1"),
        (lambda: segment(7, 21, SegmentSpec()), "no segment 7: 21 latent frames have 7"),
        (lambda: segment(-1, 21, SegmentSpec()), "no segment -1"),
        (lambda: latent_frames(0), "a clip must have 1 frame or more, got 0"),
    ],
)
def test_what_is_no_segment_is_refused(ask, message):
    with pytest.raises(UsageError, match=message):
        ask()
