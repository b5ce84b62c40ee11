"""The segments of Conditional Segment-wise Generation: which latent frames each one reads and makes.

Latent frames are counted from 0. Frame 0 is the image latent, which is given. The others are made in segments of
`targets` frames from left to right. The network sees a segment together with the image latent and with neighbours
(SwiftI2V, arXiv 2605.06356, project page and figure of CSG). Training, the planner and the runtime use this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError


@dataclass(frozen=True)
class SegmentSpec:
    """The frames of a segment: M targets, N finished neighbours before them, and unfinished neighbours after them.

    The paper's page states M = 3 and N = 1. Its figure has neighbours only before the targets, its text on both sides.
    """

    targets: int = 3
    before: int = 1
    after: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that cannot form a segment."""
        if self.targets < 1 or self.before < 0 or self.after < 0:
            raise UsageError(
                f"targets = {self.targets}, before = {self.before}, after = {self.after} cannot form a segment.",
                "Choose targets of 1 or more, and before and after of 0 or more.",
            )


@dataclass(frozen=True)
class Segment:
    """One segment's window of latent frames. A frame's absolute number is its temporal position for RoPE."""

    before: range  # neighbours that are finished
    targets: range  # the frames that this segment makes
    after: range  # neighbours that come from the motion reference

    @property
    def frames(self) -> tuple[int, ...]:
        """Return the window in order: the image latent, neighbours before, targets, neighbours after."""
        return (0, *self.before, *self.targets, *self.after)

    @property
    def noisy(self) -> slice:
        """Return the positions of the targets in the window; every other frame is clean, at timestep 0."""
        first = 1 + len(self.before)
        return slice(first, first + len(self.targets))

    @property
    def reference(self) -> range:
        """Return the latent frames that come from the motion reference."""
        return range(self.targets.start, self.after.stop)


def latent_frames(frames: int) -> int:
    """Return the number T of latent frames of a clip of `frames` video frames, rounded up."""
    if frames < 1:
        raise UsageError(f"a clip must have 1 frame or more, got {frames}.", "Ask for 1 or more.")
    return 1 + -(-(frames - 1) // COMPRESSION)


def video_frames(latent: int) -> int:
    """Return the number of video frames of `latent` latent frames: 4 (T - 1) + 1."""
    return COMPRESSION * (latent - 1) + 1


def frames_of(latent: range) -> range:
    """Return the video frames of a run of latent frames."""
    return range(max(video_frames(latent.start), 0), max(video_frames(latent.stop), 0))


def count_segments(latent: int, spec: SegmentSpec) -> int:
    """Return the number of segments of a clip of `latent` latent frames; 0 for only the image latent."""
    return -(-(latent - 1) // spec.targets)


def segment(index: int, latent: int, spec: SegmentSpec) -> Segment:
    """Return the window of segment `index` (from 0) of a clip of `latent` latent frames; the last one may be short."""
    if not 0 <= index < count_segments(latent, spec):
        raise UsageError(
            f"there is no segment {index}: {latent} latent frames have {count_segments(latent, spec)} segments.",
            "Choose one of them, counted from 0.",
        )
    start = 1 + index * spec.targets
    stop = min(start + spec.targets, latent)
    return Segment(
        range(max(1, start - spec.before), start),
        range(start, stop),
        range(stop, min(stop + spec.after, latent)),
    )


def window_frames(index: int, latent: int, spec: SegmentSpec) -> int:
    """Return the number of latent frames in the window of segment i: 1 + min(N, iM) + min(M + after, T - 1 - iM)."""
    made = index * spec.targets
    return 1 + min(spec.before, made) + min(spec.targets + spec.after, latent - 1 - made)


COMPRESSION = 4  # video frames in a latent frame; the first latent frame holds one (Wan's autoencoders)
