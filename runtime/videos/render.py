"""The path of a video from a prepared request to frames: one stage, or SwiftI2V's two.

A window is the length that Stage I is made for. A longer video is a chain of windows: the last frame of one window is
the image of the next. This keeps memory constant and costs some drift at each seam (docs/design/swifti2v.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.segments import latent_frames
from ..components import Cancel, Components
from ..sampling.latents import to_bytes
from ..storage.journal import Journal, open_journal
from .request import PreparedAnimation
from .stage_one import Event, Job, StageOne
from .stage_two import StageTwo

OnEvent = Callable[[Event], None]


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
    be loaded then, and in a video of two stages the first frames come after the window's last segment.
    """

    def __init__(
        self, components: Components, prepared: PreparedAnimation, journal: Journal | None,
        on_event: OnEvent | None, cancel: Cancel | None, in_turns: bool = False,
    ) -> None:  # fmt: skip
        video = components.bundle.manifest.video
        assert video is not None
        self._prepared, self._video = prepared, video
        job = Job(components, prepared, journal, on_event or (lambda event: None), cancel)
        self._second = None if video.detail is None else StageTwo(job, in_turns)
        self._first = StageOne(job, None if self._second is None else self._second.release)

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the video's frames in order, uint8 [n, height, width, 3], as soon as they are decoded."""
        image, text = self._prepared.image, self._first.texts()
        for window, count in enumerate(self._prepared.windows(self._video)):
            for number, frames in enumerate(self._window(window, count, image, text)):
                # A later window repeats the last frame of the window before it
                shown = frames[1:] if window and number == 0 else frames
                if len(shown):
                    yield to_bytes(shown.transpose(0, 3, 1, 2))
                image = np.clip(frames[-1], -1, 1)

    def _window(
        self, window: int, count: int, image: np.ndarray | None, text: list[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yield the frames, float32 in [-1, 1], of one window of `count` frames from its image, piece by piece."""
        if self._second is not None:
            assert image is not None
            low = self._first.latents(window, self._video.frames, image, None, text)
            yield from self._second.frames(window, count, image, low, text[-1], self._first)
            return
        ends = window == len(self._prepared.windows(self._video)) - 1
        made = self._first.latents(window, count, image, self._prepared.last if ends else None, text)
        assert made.shape[1] == latent_frames(count)
        yield from self._first.frames("frames", window, made)
