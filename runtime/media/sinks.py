"""Write frames while they are made: MP4, animated WebP, a directory of PNG files, or raw bytes.

All sinks have one signature. A sink takes a place, frames per second, height, width and metadata, and is a context
manager. It returns a function that takes frames, uint8 [n, height, width, 3] sRGB. The metadata (JSON types) goes into
the comment of an MP4 and into every PNG file; WebP and raw bytes hold none. An unfinished file has another name, such
as "out.part.mp4" for "out.mp4". An unfinished MP4 plays up to the frame before the last one, whatever stopped the run.
Sinks raise OutputError if a file cannot be written, UsageError for frames of another dtype or shape.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import OutputError, UsageError
from ..storage.files import writing
from .png import KEY, encode_png

Write = Callable[[np.ndarray], None]
Metadata = Mapping[str, Any] | None
Sink = Callable[[Path, float, int, int, Metadata], AbstractContextManager[Write]]

# Each frame is a fragment that is flushed at once, so that the file plays even if its writer was killed.
_FRAGMENTS = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
# The encoder holds no frame back. crf 16 is visually lossless for most material.
_H264 = {"crf": "16", "preset": "medium", "tune": "zerolatency"}


def find_sink(place: Path) -> Sink:
    """Return the sink for a place by its suffix: "-" is raw bytes on standard output, no suffix is a directory."""
    if str(place) == "-":
        return raw
    known: dict[str, Sink] = {".mp4": mp4, ".webp": webp, "": png_files}
    if not place.name:
        raise UsageError(f"{place} is not a name for a video.", "Name a file, or a new directory for PNG files.")
    if place.suffix.lower() not in known:
        raise UsageError(
            f"{place} ends in {place.suffix}, which is not a video format of Segue.",
            "Name it .mp4 or .webp, name a directory for PNG files, or - for raw bytes on standard output.",
        )
    return known[place.suffix.lower()]


@contextmanager
def mp4(place: Path, fps: float, height: int, width: int, metadata: Metadata = None) -> Iterator[Write]:
    """Write H.264 in yuv420p, BT.709, limited range: a fragmented file at first, a plain one at the end."""
    if height % 2 or width % 2:
        raise UsageError(f"H.264 needs even sizes, got {width} x {height}.", "Choose another size, or .webp.")
    part = _part(place)
    with _encoded(part, "mp4", "libx264", _H264, _FRAGMENTS, fps, height, width, metadata) as write:
        yield write
    whole = part.with_name(f".{place.name}.whole")
    with writing(place):
        _remuxed(part, whole)
        whole.replace(place)
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        part.unlink()


@contextmanager
def webp(place: Path, fps: float, height: int, width: int, metadata: Metadata = None) -> Iterator[Write]:
    """Write an animation that repeats. The encoder holds all compressed frames until the end."""
    part = _part(place)
    with _encoded(part, "webp", "libwebp_anim", {"quality": "85"}, {"loop": "0"}, fps, height, width) as write:
        yield write
    with writing(place):
        part.replace(place)


@contextmanager
def png_files(place: Path, fps: float, height: int, width: int, metadata: Metadata = None) -> Iterator[Write]:
    """Write `frame-00001.png` and so on into a directory, which must not exist."""
    if place.exists():
        raise OutputError(f"{place} exists.", "Remove it, or name another directory for the frames.")
    part, count = _part(place), 0

    def write(frames: np.ndarray) -> None:
        nonlocal count
        for frame in _checked(frames, height, width):
            count += 1
            with writing(part):
                (part / f"frame-{count:05d}.png").write_bytes(encode_png(frame, metadata))

    with writing(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    yield write
    with writing(place):
        part.rename(place)


@contextmanager
def raw(place: Path, fps: float, height: int, width: int, metadata: Metadata = None) -> Iterator[Write]:
    """Write the frames as RGB bytes to standard output. `ffmpeg -f rawvideo -pix_fmt rgb24 -s WxH -i -` reads them."""

    def write(frames: np.ndarray) -> None:
        try:
            sys.stdout.buffer.write(np.ascontiguousarray(_checked(frames, height, width)).tobytes())
            sys.stdout.buffer.flush()
        except OSError as error:
            raise OutputError(
                f"standard output was closed: {error.strerror}.", "Keep the program that reads the frames running."
            ) from None

    yield write


@contextmanager
def _encoded(
    part: Path,
    kind: str,
    codec: str,
    options: dict[str, str],
    muxer: dict[str, str],
    fps: float,
    height: int,
    width: int,
    metadata: Metadata = None,
) -> Iterator[Write]:
    from fractions import Fraction

    import av
    from av.video.reformatter import ColorRange, Colorspace

    with writing(part):
        container = av.open(str(part), "w", format=kind, options=muxer)
    if metadata is not None:
        container.metadata["comment"] = json.dumps({KEY: dict(metadata)}, ensure_ascii=False)
    stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
    stream.codec_context.color_primaries = stream.codec_context.color_trc = 1  # BT.709

    def write(frames: np.ndarray) -> None:
        for frame in _checked(frames, height, width):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            with writing(part):
                container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))

    try:
        yield write
        with writing(part):
            container.mux(stream.encode(None))
    finally:
        with writing(part):
            container.close()


def _remuxed(part: Path, whole: Path) -> None:
    """Copy the packets of a fragmented MP4 into one with its index in front, so that every program can seek."""
    import av

    with av.open(str(part)) as given, av.open(str(whole), "w", format="mp4", options={"movflags": "faststart"}) as made:
        made.metadata.update({name: text for name, text in given.metadata.items() if name == "comment"})
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)


def _part(place: Path) -> Path:
    return place.with_name(f"{place.stem}.part{place.suffix}")


def _checked(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.shape[1:] != (height, width, 3):
        raise UsageError(
            f"frames must be uint8 [n, {height}, {width}, 3], got {frames.dtype} {list(frames.shape)}.",
            "Convert them first.",
        )
    return frames
