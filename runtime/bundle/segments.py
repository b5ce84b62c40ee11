"""Conditional Segment-wise Generation in integers: which latent frames a segment reads, makes, and how many tokens.

Latent frames are counted from 0; frame 0 is the image latent, which is given. The others are made in segments of
`targets` frames from left to right, each seen together with the image latent and with neighbours (SwiftI2V, arXiv
2605.06356, project page and figure of CSG). Training, the planner and the runtime all ask here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError


@dataclass(frozen=True)
class SegmentSpec:
    """M target frames a segment, N neighbours before them, made already, and neighbours after them, still to come.

    The paper's page states M = 3 and N = 1. Its figure has neighbours before alone, its text on both sides.
    """

    targets: int = 3
    before: int = 1
    after: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that make no segment."""
        if self.targets < 1 or self.before < 0 or self.after < 0:
            raise UsageError(
                f"targets = {self.targets}, before = {self.before}, after = {self.after} make no segment. Choose "
                "targets of 1 or more, and neighbours of 0 or more."
            )


@dataclass(frozen=True)
class Segment:
    """One segment's window of latent frames, by their absolute numbers, which are their temporal positions for RoPE."""

    before: range  # neighbours that are made already
    targets: range  # what this segment makes
    after: range  # neighbours that still are the motion reference

    @property
    def frames(self) -> tuple[int, ...]:
        """Return the whole window in its order: the image latent, neighbours before, targets, neighbours after."""
        return (0, *self.before, *self.targets, *self.after)

    @property
    def noisy(self) -> slice:
        """Return where the targets stand in the window; every other frame of it is clean, at timestep 0."""
        first = 1 + len(self.before)
        return slice(first, first + len(self.targets))

    @property
    def reference(self) -> range:
        """Return the latent frames that are read from the motion reference."""
        return range(self.targets.start, self.after.stop)


def latent_frames(frames: int) -> int:
    """Return the number T of latent frames of a clip of `frames` video frames, rounded up to a whole one."""
    if frames < 1:
        raise UsageError(f"a clip of {frames} frames is none. Ask for 1 or more.")
    return 1 + -(-(frames - 1) // COMPRESSION)


def video_frames(latent: int) -> int:
    """Return the number of video frames of `latent` latent frames: 4 (T - 1) + 1."""
    return COMPRESSION * (latent - 1) + 1


def frames_of(latent: range) -> range:
    """Return the video frames of a run of latent frames."""
    return range(max(video_frames(latent.start), 0), max(video_frames(latent.stop), 0))


def count_segments(latent: int, spec: SegmentSpec) -> int:
    """Return how many segments make a clip of `latent` latent frames; none where there is only the image latent."""
    return -(-(latent - 1) // spec.targets)


def segment(index: int, latent: int, spec: SegmentSpec) -> Segment:
    """Return the window of segment `index` (from 0) of a clip of `latent` latent frames; the last one may be short."""
    if not 0 <= index < count_segments(latent, spec):
        raise UsageError(
            f"segment {index} is none of the {count_segments(latent, spec)} that {latent} latent frames have. Choose "
            "one of those, counted from 0."
        )
    start = 1 + index * spec.targets
    stop = min(start + spec.targets, latent)
    return Segment(
        range(max(1, start - spec.before), start),
        range(start, stop),
        range(stop, min(stop + spec.after, latent)),
    )


def window_frames(index: int, latent: int, spec: SegmentSpec) -> int:
    """Return the latent frames of segment `index`'s window: 1 + min(N, iM) + min(M + after, T - 1 - iM)."""
    made = index * spec.targets
    return 1 + min(spec.before, made) + min(spec.targets + spec.after, latent - 1 - made)


def window_bound(spec: SegmentSpec) -> int:
    """Return the most latent frames that any window has, whatever the clip's length: 1 + N + M + after."""
    return 1 + spec.before + spec.targets + spec.after


def frame_tokens(height: int, width: int, patch: int) -> int:
    """Return the tokens of one latent frame of `height` x `width` latent pixels in patches of `patch` x `patch`.

    A window of f latent frames has f times as many: the sequence length of each network call.
    """
    if height % patch or width % patch or min(height, width, patch) < 1:
        raise UsageError(
            f"latent frames of {height} x {width} cannot be cut into patches of {patch} x {patch}. Choose a size that "
            "is a multiple."
        )
    return (height // patch) * (width // patch)


COMPRESSION = 4  # video frames of a latent frame, but for the first one, which holds one (Wan's autoencoders)
