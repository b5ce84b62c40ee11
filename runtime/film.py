"""Write a video: the frames of a request go into a sink, with metadata and signature; recognise one that is done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .media.png import find_metadata
from .media.provenance import Certificate, check_certificate, read_file, sign_file
from .media.sinks import Sink, find_sink
from .pipeline import Model
from .storage.files import write_whole, writing
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
    described = describe(ready, model.bundle.manifest, model.bundle.digest, model.target, model.loras)
    told = described if metadata else None
    with sink(place, ready.fps, ready.height, ready.width, told) as write:
        for frames in made:
            write(frames)
            done += len(frames)
            on_frames(done, ready.frames)
    if certificate is not None:
        sign_file(place, certificate, told, described)
    return done


def seed_of_finished(
    model: Model, ready: PreparedAnimation, place: Path, metadata: bool, signed: bool, any_seed: bool
) -> int | None:
    """Return the seed of the video at `place` if it is finished and this request made it; else None.

    With `any_seed` the request names no seed, and the video's own is returned. The video's metadata tell, and for a
    video without metadata the record that `remember` left beside it.
    """
    found = _metadata_of(place, ready.frames) if metadata else None
    if found is not None:
        told, has_signature = found
    else:
        try:
            told = json.loads(_record(place).read_text(encoding="utf-8"))
            has_signature = signed
            if told["size"] != _size(place):  # another program has replaced it
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
    seed = told.get("seed")
    if has_signature != signed or not isinstance(seed, int) or not (any_seed or seed == ready.seed):
        return None
    wanted = _facts(model, replace(ready, seed=seed))
    same = told.get("request") == _digest(wanted, metadata, signed) if found is None else wanted.items() <= told.items()
    return seed if same else None


def remember(model: Model, ready: PreparedAnimation, place: Path, metadata: bool, signed: bool) -> None:
    """Leave a record beside a finished video that cannot tell by itself which request made it.

    It is the hidden file `.NAME.made.json`, with the seed and a hash of the request. Raises OutputError.
    """
    record = _record(place)
    with writing(record):
        record.unlink(missing_ok=True)
        if not metadata or _metadata_of(place, ready.frames) is None:
            request = _digest(_facts(model, ready), metadata, signed)
            data = {"request": request, "seed": ready.seed, "size": _size(place)}
            write_whole(record, json.dumps(data).encode())


def _facts(model: Model, ready: PreparedAnimation) -> dict[str, Any]:
    """Return what decides a video's file, as JSON types; not the version of Segue."""
    facts = describe(ready, model.bundle.manifest, model.bundle.digest, model.target, model.loras)
    facts.pop("segue")
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def _digest(facts: dict[str, Any], metadata: bool, signed: bool) -> str:
    return hashlib.sha256(json.dumps([facts, metadata, signed], sort_keys=True).encode()).hexdigest()


def _metadata_of(place: Path, frames: int) -> tuple[dict[str, Any], bool] | None:
    """Return the metadata of a finished video and whether it is signed; None if it holds no metadata."""
    try:
        if place.is_dir():
            found = find_metadata(place / "frame-00001.png") if _size(place) == frames else None
            return None if found is None else (found, False)
        if place.suffix.lower() != ".mp4":
            return None
        told = read_file(place)
    except UsageError:
        return None
    return None if told["metadata"] is None else (told["metadata"], told["signature"] is not None)


def _record(place: Path) -> Path:
    return place.absolute().with_name(f".{place.name}.made.json")


def _size(place: Path) -> int:
    """Return the bytes of a file, or the number of frames in a directory."""
    return len(list(place.glob("frame-*.png"))) if place.is_dir() else place.stat().st_size
