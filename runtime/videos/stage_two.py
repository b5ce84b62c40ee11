"""Stage II of a video (SwiftI2V): the motion reference of a window, its segments, and their frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from ..bundle.families import DETAIL, DETAIL_VAE
from ..bundle.manifest import step_of
from ..bundle.segments import SegmentSpec, count_segments, latent_frames
from ..sampling import csg, noise
from ..sampling.reference import hybrid_reference
from .codec import StreamingAutoencoder
from .denoise import denoise_segment
from .stage_one import DETAIL_FRESH, DETAIL_NOISE, Event, Job, StageOne


class StageTwo:
    """Stage II of one video. With `in_turns` each component finishes a window before the next component starts."""

    def __init__(self, job: Job, in_turns: bool) -> None:
        content = job.components.bundle.manifest
        assert content.video is not None
        assert content.video.detail is not None
        self._job, self._video, self._latents, self._in_turns = job, content.video, content.latents, in_turns
        detail = content.video.detail
        self._codec = StreamingAutoencoder(
            job.components, DETAIL_VAE, detail.mean, detail.std, content.latents.factor, job.prepared.tiling, job.cancel
        )
        self._segments = SegmentSpec(detail.targets, detail.before, detail.after)

    def release(self) -> None:
        """Free all components: memory never holds Stage I and Stage II together."""
        self._codec.release()
        self._job.components.release(DETAIL, step_of(DETAIL))

    def frames(
        self, window: int, count: int, image: np.ndarray, low: np.ndarray, text: np.ndarray, first: StageOne
    ) -> Iterator[np.ndarray]:
        """Yield the frames, float32 in [-1, 1], of a window of `count` frames, segment by segment.

        `low` are Stage I's latents of the window, which begins with `image`; `text` is the states of the prompt.
        """
        latent = latent_frames(count)
        small = (frame for some in first.frames("reference", window, low) for frame in np.clip(some, -1, 1))
        encoded = self._codec.encode(hybrid_reference(iter(list(small)) if self._in_turns else small, image))
        reference = Ahead(list(encoded) if self._in_turns else encoded)
        begin = reference(range(1))
        total = count_segments(latent, self._segments)
        done = self._finished(window, total)
        context = max(self._segments.before, 1)

        def latents() -> Iterator[tuple[int, np.ndarray]]:
            yield 0, begin
            before: np.ndarray | None = None
            for number in range(done):
                kept = self._job.kept(f"segment-{window}-{number}")
                assert kept is not None, "_finished has read it"
                yield number + 1, kept
                before = (kept if before is None else np.concatenate([before, kept], 1))[:, -context:]
            made = csg.generate(
                partial(denoise_segment, self._job.components, text, self._job.cancel, self._fresh(window)),
                begin,
                reference,
                partial(self._noise, window, DETAIL_NOISE),
                latent,
                self._segments,
                done,
                before,
            )
            for number, (_, found) in enumerate(made, done):
                self._job.keep(f"segment-{window}-{number}", found)
                self._job.report(Event("detail", window, number + 1, total))
                yield number + 1, found

        held: list[np.ndarray] = []
        counts: list[int] = []

        def one_by_one() -> Iterator[np.ndarray]:
            for _, found in list(latents()) if self._in_turns else latents():
                counts.append(found.shape[1])
                yield from np.split(found, found.shape[1], 1)

        for frames in self._codec.decode(one_by_one()):
            held.append(frames)
            counts[-1] -= 1
            # The image latent's frame comes with the first segment, or by itself if there is no segment
            if counts[-1] == 0 and (len(counts) > 1 or latent == 1):
                whole, held = np.concatenate(held), []
                yield whole

    def _noise(self, window: int, stream: int, frames: range) -> np.ndarray:
        """Return the noise of latent frames of a window; a frame's noise does not depend on its segment."""
        prepared, latents = self._job.prepared, self._latents
        shape = (latents.channels, prepared.height // latents.factor, prepared.width // latents.factor)
        start = window * (latent_frames(self._video.frames) - 1)
        return np.stack([noise.philox_normal(shape, prepared.seed, start + i, stream) for i in frames], 1)

    def _fresh(self, window: int) -> csg.Fresh:
        return lambda step, frames: self._noise(window, DETAIL_FRESH + step, frames)

    def _finished(self, window: int, total: int) -> int:
        """Return the number of segments of a window that the journal holds without a gap."""
        for number in range(total):
            if self._job.kept(f"segment-{window}-{number}") is None:
                return number
        return total


class Ahead:
    """Latent frames by number, from an iterator that yields them in order. It drops frames before the last range."""

    def __init__(self, latents: Iterable[np.ndarray]) -> None:
        self._latents, self._start = iter(latents), 0
        self._held: list[np.ndarray] = []

    def __call__(self, frames: range) -> np.ndarray:
        """Return the frames [channels, n, h, w]. A call must not begin earlier than the call before."""
        while self._start + len(self._held) < frames.stop:
            self._held.append(next(self._latents))
            self._drop(frames.start)
        self._drop(frames.start)
        return np.concatenate(self._held[: len(frames)], 1)

    def _drop(self, before: int) -> None:
        while self._held and self._start < before:
            del self._held[0]
            self._start += 1
