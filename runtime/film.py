"""Write a video: the frames of a request go into a sink, with metadata and signature."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .media.provenance import Certificate, check_certificate, sign_file
from .media.sinks import Sink, find_sink
from .pipeline import Model
from .videos.request import AnimationRequest, PreparedAnimation, describe


def film(
    model: Model,
    request: AnimationRequest | PreparedAnimation,
    place: str | os.PathLike[str],
    *,
    sink: Sink | None = None,
    metadata: bool = True,
    certificate: Certificate | None = None,
    on_frames: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> int:
    """Write the video of `request` to `place`, signed if there is a certificate; return its number of frames.

    `place` is an .mp4 or .webp file, or a directory for PNG files; `sink` overrides this. An MP4 grows as
    `NAME.part.mp4` beside it. If the run is stopped, that file stays and plays.

    `on_frames(done, total)` is called after frames are written. `options` are those of `Model.frames`, which checks the
    request before anything is written. Raises as `Model.frames` and the sink do.
    """
    place = Path(place)
    sink = sink or find_sink(place)
    if certificate is not None:
        check_certificate(certificate)  # before the work, because a video takes minutes
    ready, done = model.prepare(request), 0
    made = model.frames(ready, **options)
    described = describe(ready, model.bundle.manifest, model.bundle.digest, model.target) if metadata else None
    with sink(place, ready.fps, ready.height, ready.width, described) as write:
        for frames in made:
            write(frames)
            done += len(frames)
            on_frames(done, ready.frames)
    if certificate is not None:
        sign_file(place, certificate, described)
    return done
