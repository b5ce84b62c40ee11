"""What a caller of `animate` asks for, and the checks and defaults that turn it into work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from ...errors import UsageError
from ..bundle.limits import MAX_FPS, MAX_FRAMES, MIN_FPS
from ..bundle.manifest import Manifest, Video
from ..bundle.segments import latent_frames, video_frames
from ..request import check_size, check_text
from ..sampling import noise
from ..sampling.tiles import Tiling


@dataclass(frozen=True, eq=False)
class AnimationRequest:
    """A video that is asked for.

    `image` is uint8 [height, width, 3] in sRGB; the video begins with its middle in the shape of `size` (height, width;
    None: the bundle's), as Stage II's autoencoder gives it back. `frames` (None: one window) is rounded up to 4 k + 1.
    `fps` (None: the bundle's) is the speed that it is meant for, and changes no frame. `tiling` has Stage II's
    autoencoder work tile by tile, which takes less memory and gives slightly other frames (a tile's edges know nothing
    of what is beyond them).
    """

    image: np.ndarray
    prompt: str = ""
    negative: str = ""
    frames: int | None = None
    fps: float | None = None
    seed: int = 0
    size: int | tuple[int, int] | None = None
    tiling: Tiling | None = None


@dataclass(frozen=True, eq=False)
class PreparedAnimation:
    """A request that can be met: whole frames, a possible size, the image at that size as float32 in [-1, 1]."""

    image: np.ndarray
    prompt: str
    negative: str
    frames: int
    fps: float
    seed: int
    height: int
    width: int
    tiling: Tiling | None

    def windows(self, video: Video) -> list[int]:
        """Return the video frames of each window, the image among them."""
        each, left = video.frames - 1, self.frames - 1
        return [min(each, left - start) + 1 for start in range(0, max(left, 1), each)]


def prepare(request: AnimationRequest, content: Manifest) -> PreparedAnimation:
    """Return `request` ready for the bundle with that manifest; raises UsageError for whatever cannot be met."""
    from ..media.read_image import fitted

    assert content.video is not None
    image = np.asarray(request.image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UsageError(
            f"image is {image.dtype} {list(image.shape)}, not uint8 [height, width, 3]. Read a file with "
            "segue.read_image."
        )
    frames = content.video.frames if request.frames is None else request.frames
    if isinstance(frames, bool) or not isinstance(frames, int | np.integer) or not 1 <= frames <= MAX_FRAMES:
        raise UsageError(f"frames = {frames!r} is no whole number from 1 to {MAX_FRAMES}. Try {content.video.frames}.")
    fps = content.video.fps if request.fps is None else request.fps
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not MIN_FPS <= fps <= MAX_FPS:
        raise UsageError(f"fps = {fps!r} is no number from {MIN_FPS} to {MAX_FPS}. Try {content.video.fps:g}.")
    for text in (request.prompt, request.negative):
        check_text(text)
    height, width = check_size(request.size, content.sizes)
    first = fitted(image, height, width).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return PreparedAnimation(
        first, request.prompt, request.negative, video_frames(latent_frames(int(frames))), float(fps),
        noise.check_seed(request.seed), height, width, request.tiling,
    )  # fmt: skip


def job(prepared: PreparedAnimation, digest: str) -> dict[str, Any]:
    """Return what tells one animation from another, for its journal; `digest` is the bundle's."""
    import hashlib

    return {
        "bundle_sha256": digest,
        "image_sha256": hashlib.sha256(prepared.image.tobytes()).hexdigest(),
        "prompt": prepared.prompt,
        "negative": prepared.negative,
        "frames": prepared.frames,
        "seed": prepared.seed,
        "size": [prepared.height, prepared.width],
        "tiling": prepared.tiling and [number for number in astuple(prepared.tiling) if number is not None],
    }


def as_begun(prepared: PreparedAnimation, kept: Mapping[str, Any]) -> PreparedAnimation:
    """Return the animation with the tiles of a journal's job, which a budget of then may have chosen."""
    sides = kept.get("tiling")
    try:
        return replace(prepared, tiling=None if sides is None else Tiling(*sides))
    except TypeError:  # it is no job's, which `check_job` tells
        return prepared


def describe(prepared: PreparedAnimation, content: Manifest, digest: str, target: str) -> dict[str, Any]:
    """Return what is needed to make the animation again, but for its image (JSON types)."""
    import importlib.metadata

    return job(prepared, digest) | {
        "fps": prepared.fps, "bundle": content.name, "engine": target, "segue": importlib.metadata.version("segue"),
    }  # fmt: skip
