"""A video from a request to a file: its frames into a sink, with what the file says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .media.provenance import Certificate, check_certificate, sign_file
from .media.sinks import Sink, find_sink
from .pipeline import Model
from .videos.request import AnimationRequest, describe, prepare


def film(
    model: Model,
    request: AnimationRequest,
    place: str | os.PathLike[str],
    *,
    sink: Sink | None = None,
    metadata: bool = True,
    certificate: Certificate | None = None,
    on_frames: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> int:
    """Write the video of `request` to `place`, signed where there is a certificate; return its number of frames.

    `place` is an .mp4 or .webp file, or a directory for PNG files, unless a `sink` says what it is. An MP4 grows as
    `NAME.part.mp4` beside it, which stays, and plays, where making it was stopped.

    `on_frames(done, total)` is told when frames are written; `options` are those of `Model.frames`, which is called,
    and checks the request, before anything is written. Raises as it and the sink do.
    """
    place = Path(place)
    sink = sink or find_sink(place)
    if certificate is not None:
        check_certificate(certificate)  # a video takes minutes
    made = model.frames(request, **options)
    ready, done = prepare(request, model.bundle.manifest), 0
    told = describe(ready, model.bundle.manifest, model.bundle.digest, model.target) if metadata else None
    with sink(place, ready.fps, ready.height, ready.width, told) as write:
        for frames in made:
            write(frames)
            done += len(frames)
            on_frames(done, ready.frames)
    if certificate is not None:
        sign_file(place, certificate, told)
    return done
