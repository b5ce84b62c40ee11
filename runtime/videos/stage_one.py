"""Stage I of a video, and all of a video of one stage: the text, the latents of a window, and their frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ...engines import heap
from ..bundle.families import MOTION_VAE, TEXT_ENCODER, TOKENIZER
from ..bundle.limits import MAX_STEPS
from ..bundle.segments import latent_frames
from ..components import Cancel, Components
from ..sampling import noise
from ..storage.journal import Journal
from .codec import StreamingAutoencoder
from .denoise import Given, denoise_motion
from .request import PreparedAnimation, takes_text_alone

# Streams of noise; pictures use stream 0. A step that adds noise anew has a stream of its own from FRESH on
MOTION_NOISE, DETAIL_NOISE, FRESH, DETAIL_FRESH = 1, 2, 3, 3 + MAX_STEPS


@dataclass(frozen=True)
class Event:
    """Progress: `done` of `total` calls of a stage in one window.

    `stage` is "text", "motion", "reference", "detail", or in a video of one stage "frames". Windows count from 0.
    """

    stage: str
    window: int
    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Job:
    """A prepared video and what its stages share: the components, the journal if any, reports and `cancel`."""

    components: Components
    prepared: PreparedAnimation
    journal: Journal | None
    report: Callable[[Event], None]
    cancel: Cancel | None

    def kept(self, name: str) -> np.ndarray | None:
        """Return a finished array of an earlier run."""
        return self.journal.get(name) if self.journal is not None else None

    def keep(self, name: str, array: np.ndarray) -> None:
        """Keep a finished array for a later run."""
        if self.journal is not None:
            self.journal.put(name, array)


class StageOne:
    """Stage I of one video; `before` runs before a window is drawn, to free what the stages after it hold."""

    def __init__(self, job: Job, before: Callable[[], None] | None = None) -> None:
        content = job.components.bundle.manifest
        assert content.video is not None
        self._job, self._video = job, content.video
        self._alone = takes_text_alone(content)
        motion, whole = content.video.motion, content.video.detail is None
        self._codec = StreamingAutoencoder(
            job.components, MOTION_VAE, motion.mean, motion.std, motion.factor,
            job.prepared.tiling if whole else None, job.cancel,
        )  # fmt: skip
        self._before = before or self._codec.release  # the decoder of the window before

    def texts(self) -> list[np.ndarray]:
        """Return the states of the negative prompt (only if Stage I has guidance) and of the prompt."""
        job = self._job
        guided = self._video.motion.sampler.guidance > 1
        texts = [*([job.prepared.negative] if guided else []), job.prepared.prompt]
        states = []
        for done, prompt in enumerate(texts):
            job.report(Event("text", 0, done, len(texts)))
            tokens = job.components.tokens(TOKENIZER, prompt)
            found = job.components.run(TEXT_ENCODER, job.cancel, input_ids=tokens.ids, attention_mask=tokens.mask)
            states.append(found["states"])
        job.components.release(TEXT_ENCODER)
        return states

    def latents(
        self, window: int, count: int, image: np.ndarray | None, last: np.ndarray | None, text: list[np.ndarray]
    ) -> np.ndarray:
        """Return the latents of a window of `count` frames, float32 [channels, T, h, w]; from the journal if kept.

        `image` and `last` are the first and the last frame, float32 [height, width, 3] in [-1, 1], or None.
        """
        job, name = self._job, f"motion-{window}"
        found = job.kept(name)
        if found is not None:
            return found
        self._before()
        heap.trim()  # otherwise glibc's heap grows over the first windows
        motion, scale = self._video.motion, self._video.scale
        given = Given(self._encoded(count, image, last), last is not None)
        self._codec.release()
        height, width = (side // scale // motion.factor for side in (job.prepared.height, job.prepared.width))
        shape = (motion.channels, latent_frames(count), height, width)

        def drawn(stream: int) -> np.ndarray:
            return noise.philox_normal(shape, job.prepared.seed, window, stream)

        made = denoise_motion(
            job.components, np.concatenate(text), drawn(MOTION_NOISE), given, lambda step: drawn(FRESH + step),
            job.cancel, lambda done, total: job.report(Event("motion", window, done, total)),
        )  # fmt: skip
        job.keep(name, made)
        return made

    def frames(self, stage: str, window: int, latents: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of each latent frame, float32 [1 or 4, height, width, 3]; events have the stage `stage`."""
        total = latents.shape[1]
        for done, frames in enumerate(self._codec.decode(np.split(latents, total, 1))):
            self._job.report(Event(stage, window, done, total))
            yield frames

    def _encoded(self, count: int, image: np.ndarray | None, last: np.ndarray | None) -> np.ndarray | None:
        """Return the latents that the denoiser is given: of the image alone, or of it and the frames after it."""
        if image is None:
            return None
        first = scaled(image, self._video.scale)
        if self._alone:
            return next(self._codec.encode([first]))
        grey = np.zeros_like(first)
        final = grey if last is None else scaled(last, self._video.scale)
        frames = (first if i == 0 else final if i == count - 1 else grey for i in range(count))
        return np.concatenate(list(self._codec.encode(frames)), 1)


def scaled(image: np.ndarray, factor: int) -> np.ndarray:
    """Return an image [height, width, 3] with its sides divided by `factor`; each pixel is the mean of its area."""
    height, width, channels = image.shape
    pieces = image.reshape(height // factor, factor, width // factor, factor, channels)
    return pieces.mean((1, 3), dtype=np.float32)
