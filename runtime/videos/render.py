"""The path of a video (SwiftI2V) from a prepared request to frames: text, motion, reference, detail, decode.

A window is the length that Stage I is made for. A longer video is a chain of windows: the last frame of one window is
the image of the next. This keeps memory constant and costs some drift at each seam (docs/design/swifti2v.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.families import DETAIL, DETAIL_VAE, MOTION_VAE, TEXT_ENCODER, TOKENIZER
from ..bundle.manifest import step_of
from ..bundle.segments import SegmentSpec, count_segments, latent_frames
from ..components import Cancel, Components
from ..sampling import csg, noise
from ..sampling.latents import to_bytes
from ..sampling.reference import hybrid_reference
from ..storage.journal import Journal, open_journal
from . import denoise
from .codec import StreamingAutoencoder
from .request import PreparedAnimation

OnEvent = Callable[["Event"], None]

MOTION_NOISE, DETAIL_NOISE = 1, 2  # streams of noise; pictures use stream 0


@dataclass(frozen=True)
class Event:
    """Progress: `done` of `total` calls of a stage in one window.

    `stage` is "text", "motion", "reference" or "detail". Windows count from 0.
    """

    stage: str
    window: int
    done: int
    total: int


def animate(
    components: Components, prepared: PreparedAnimation, journal: tuple[Path, dict[str, Any]] | None, resume: bool,
    on_event: OnEvent | None, cancel: Cancel | None, in_turns: bool = False,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield the frames of a video; see `Animator`. `journal` is a folder and its job.

    The journal opens when the first frame is asked for, and closes at the end.
    """
    kept = None if journal is None else open_journal(*journal, resume)
    try:
        yield from Animator(components, prepared, kept, on_event, cancel, in_turns).frames()
    finally:
        if kept is not None:
            kept.close()


class Animator:
    """Makes one prepared video with the components of a bundle; finished work goes into `journal`, if any.

    With `in_turns` each component finishes a window's work before the next component starts. Only one of them needs to
    be loaded then, and the first frames come after the window's last segment.
    """

    def __init__(
        self, components: Components, prepared: PreparedAnimation, journal: Journal | None,
        on_event: OnEvent | None, cancel: Cancel | None, in_turns: bool = False,
    ) -> None:  # fmt: skip
        content = components.bundle.manifest
        assert content.video is not None
        self._components, self._prepared, self._journal = components, prepared, journal
        self._content, self._video, self._cancel = content, content.video, cancel
        self._in_turns = in_turns
        self._report = on_event or (lambda event: None)
        low = self._video.motion
        self._low = StreamingAutoencoder(components, MOTION_VAE, low.mean, low.std, low.factor, None, cancel)
        self._high = StreamingAutoencoder(
            components, DETAIL_VAE, self._video.mean, self._video.std, content.latents.factor, prepared.tiling, cancel
        )
        self._segments = SegmentSpec(self._video.targets, self._video.before, self._video.after)

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the video's frames in order, uint8 [n, height, width, 3], as soon as their segment is decoded."""
        image, text = self._prepared.image, self._texts()
        for window, count in enumerate(self._prepared.windows(self._video)):
            for number, frames in enumerate(self._window(window, count, image, text)):
                # A later window repeats the last frame of the window before it
                shown = frames[1:] if window and number == 0 else frames
                if len(shown):
                    yield to_bytes(shown.transpose(0, 3, 1, 2))
                image = np.clip(frames[-1], -1, 1)

    def _window(self, window: int, count: int, image: np.ndarray, text: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the frames, float32 in [-1, 1], of one window of `count` frames from its image, segment by segment."""
        latent = latent_frames(count)
        low = self._motion(window, image, text)
        small = self._motion_frames(window, low)
        encoded = self._high.encode(hybrid_reference(iter(list(small)) if self._in_turns else small, image))
        reference = Ahead(list(encoded) if self._in_turns else encoded)
        first = reference(range(1))
        total = count_segments(latent, self._segments)
        done = self._finished(window, total)
        context = max(self._segments.before, 1)

        def latents() -> Iterator[tuple[int, np.ndarray]]:
            yield 0, first
            before: np.ndarray | None = None
            for number in range(done):
                kept = self._kept(f"segment-{window}-{number}")
                assert kept is not None, "_finished has read it"
                yield number + 1, kept
                before = (kept if before is None else np.concatenate([before, kept], 1))[:, -context:]
            made = csg.generate(
                partial(denoise.denoise_segment, self._components, text[-1], self._cancel),
                first,
                reference,
                self._noise(window),
                latent,
                self._segments,
                done,
                before,
            )
            for number, (_, found) in enumerate(made, done):
                self._keep(f"segment-{window}-{number}", found)
                self._report(Event("detail", window, number + 1, total))
                yield number + 1, found

        held: list[np.ndarray] = []
        counts: list[int] = []

        def one_by_one() -> Iterator[np.ndarray]:
            for _, found in list(latents()) if self._in_turns else latents():
                counts.append(found.shape[1])
                yield from np.split(found, found.shape[1], 1)

        for frames in self._high.decode(one_by_one()):
            held.append(frames)
            counts[-1] -= 1
            # The image latent's frame comes with the first segment, or by itself if there is no segment
            if counts[-1] == 0 and (len(counts) > 1 or latent == 1):
                whole, held = np.concatenate(held), []
                yield whole

    def _texts(self) -> list[np.ndarray]:
        """Return the states of the negative prompt (only if Stage I has guidance) and of the prompt."""
        guided = self._video.motion.sampler.guidance > 1
        texts = [*([self._prepared.negative] if guided else []), self._prepared.prompt]
        states = []
        for done, prompt in enumerate(texts):
            self._report(Event("text", 0, done, len(texts)))
            tokens = self._components.tokens(TOKENIZER, prompt)
            found = self._components.run(TEXT_ENCODER, self._cancel, input_ids=tokens.ids, attention_mask=tokens.mask)
            states.append(found["states"])
        self._components.release(TEXT_ENCODER)
        return states

    def _motion(self, window: int, image: np.ndarray, text: list[np.ndarray]) -> np.ndarray:
        """Return Stage I's latents of a window, float32 [channels, T, h, w]; from the journal if it has them."""
        name = f"motion-{window}"
        found = self._kept(name)
        if found is not None:
            return found
        self._high.release()  # of the window before: memory never holds Stage I and Stage II together
        self._components.release(DETAIL, step_of(DETAIL))
        video, low = self._video, scaled(image, self._video.scale)
        grey = np.zeros_like(low)
        given = np.concatenate(list(self._low.encode(low if i == 0 else grey for i in range(video.frames))), 1)
        self._low.release()
        made = denoise.denoise_motion(
            self._components, np.concatenate(text),
            noise.philox_normal(given.shape, self._prepared.seed, window, MOTION_NOISE), given, self._cancel,
            lambda done, total: self._report(Event("motion", window, done, total)),
        )  # fmt: skip
        self._keep(name, made)
        return made

    def _motion_frames(self, window: int, latents: np.ndarray) -> Iterator[np.ndarray]:
        total = latents.shape[1]
        for done, frames in enumerate(self._low.decode(np.split(latents, total, 1))):
            self._report(Event("reference", window, done, total))
            yield from np.clip(frames, -1, 1)

    def _noise(self, window: int) -> csg.Frames:
        """Return the noise of a window's latent frames; a frame's noise does not depend on its segment."""
        prepared, latents = self._prepared, self._content.latents
        shape = (latents.channels, prepared.height // latents.factor, prepared.width // latents.factor)
        start = window * (latent_frames(self._video.frames) - 1)

        def drawn(frames: range) -> np.ndarray:
            return np.stack([noise.philox_normal(shape, prepared.seed, start + i, DETAIL_NOISE) for i in frames], 1)

        return drawn

    def _finished(self, window: int, total: int) -> int:
        """Return the number of segments of a window that the journal holds without a gap."""
        for number in range(total):
            if self._kept(f"segment-{window}-{number}") is None:
                return number
        return total

    def _kept(self, name: str) -> np.ndarray | None:
        return self._journal.get(name) if self._journal is not None else None

    def _keep(self, name: str, array: np.ndarray) -> None:
        if self._journal is not None:
            self._journal.put(name, array)


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


def scaled(image: np.ndarray, factor: int) -> np.ndarray:
    """Return an image [height, width, 3] with its sides divided by `factor`; each pixel is the mean of its area."""
    height, width, channels = image.shape
    pieces = image.reshape(height // factor, factor, width // factor, factor, channels)
    return pieces.mean((1, 3), dtype=np.float32)
