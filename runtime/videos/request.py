"""A request for a video: its checks and its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from ...errors import UsageError
from ..bundle.families import TIMES
from ..bundle.limits import MAX_FPS, MAX_FRAMES, MIN_FPS
from ..bundle.manifest import Manifest, Video
from ..bundle.segments import latent_frames, video_frames
from ..input_picture import check_picture
from ..request import check_size, check_text
from ..sampling import noise
from ..sampling.tiles import Tiling
from ..units import whole_number


@dataclass(frozen=True, eq=False)
class AnimationRequest:
    """A request for a video; None takes the bundle's default.

    - `image`: uint8 [height, width, 3] in sRGB. Its middle, cropped to the shape of `size`, is the first frame after a
      pass through the autoencoder. Only a bundle that also draws from text alone takes None.
    - `size`: (height, width) in pixels, or one number for both.
    - `frames`: rounded up to 4 k + 1. None: one window.
    - `fps`: the intended speed. It changes no frame.
    - `seed`: 0 to 2**64 - 1. None draws one at random; the metadata names it.
    - `tiling`: the autoencoder of the frames works tile by tile. This takes less memory and changes the frames
      slightly, because a tile does not see past its edges.
    - `last`: like `image`, the picture that the video ends with. Only some bundles take it.
    """

    image: np.ndarray | None = None
    prompt: str = ""
    negative: str = ""
    frames: int | None = None
    fps: float | None = None
    seed: int | None = 0
    size: int | tuple[int, int] | None = None
    tiling: Tiling | None = None
    last: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class PreparedAnimation:
    """A request checked for one bundle; `image` and `last` are float32 in [-1, 1] at the video's size, or None."""

    image: np.ndarray | None
    prompt: str
    negative: str
    frames: int
    fps: float
    seed: int
    height: int
    width: int
    tiling: Tiling | None
    asked: str  # the prompt as the caller wrote it; `prompt` may spell its emoji as names
    given: tuple[int, int] | None  # height and width of the picture before it was cropped
    last: np.ndarray | None = None

    def windows(self, video: Video) -> list[int]:
        """Return the number of frames of each window, including its image."""
        each, left = video.frames - 1, self.frames - 1
        return [min(each, left - start) + 1 for start in range(0, max(left, 1), each)]


def prepare(request: AnimationRequest, content: Manifest) -> PreparedAnimation:
    """Return `request` checked for the bundle; raises UsageError if the bundle cannot meet it."""
    assert content.video is not None
    for name, picture in (("image", request.image), ("last", request.last)):
        if picture is not None:
            check_picture(name, picture)
    if request.image is None and not takes_text_alone(content):
        raise UsageError(f"the bundle {content.name!r} animates a picture, and none was given. Give one as image.")
    frames = content.video.frames if request.frames is None else request.frames
    frames = video_frames(latent_frames(whole_number("frames", frames, 1, MAX_FRAMES)))
    fps = content.video.fps if request.fps is None else request.fps
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not MIN_FPS <= fps <= MAX_FPS:
        raise UsageError(f"fps must be a number from {MIN_FPS} to {MAX_FPS}, got {fps!r}. Try {content.video.fps:g}.")
    if request.last is not None:
        check_last(content, frames)
    check_text("prompt", request.prompt)
    check_text("negative", request.negative)
    height, width = check_size(request.size, content.sizes)
    return PreparedAnimation(
        _first(request.image, height, width), request.prompt, request.negative, frames, float(fps),
        noise.random_seed() if request.seed is None else noise.check_seed(request.seed), height, width, request.tiling,
        request.prompt, None if request.image is None else np.asarray(request.image).shape[:2],
        _first(request.last, height, width),
    )  # fmt: skip


def takes_text_alone(content: Manifest) -> bool:
    """Return whether a bundle for videos also draws without a picture: its picture is only a latent frame."""
    return content.video is not None and TIMES[content.video.given] == "timesteps"


def takes_last(content: Manifest) -> bool:
    """Return whether a bundle for videos takes a last picture: its mask can mark it, and no Stage II replaces it."""
    return content.video is not None and content.video.detail is None and not takes_text_alone(content)


def check_last(content: Manifest, frames: int) -> None:
    """Raise UsageError unless a video of `frames` frames may be given the picture that it ends with."""
    if not takes_last(content):
        raise UsageError(
            f"the bundle {content.name!r} of family {content.family} takes no last picture. Leave last out, or open a "
            "bundle of Wan 2.2's I2V-A14B."
        )
    if frames == 1:
        raise UsageError("a video of 1 frame has no last picture beside its first. Ask for 5 frames or more.")


def _first(image: np.ndarray | None, height: int, width: int) -> np.ndarray | None:
    """Return a picture cropped and scaled to a size, float32 in [-1, 1]."""
    from ..media.read_image import fitted

    if image is None:
        return None
    return fitted(np.asarray(image), height, width).astype(np.float32) / np.float32(127.5) - np.float32(1)


def job(prepared: PreparedAnimation, digest: str, loras: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the values that identify a video, for its journal; `digest` is the bundle's, `loras` are `Model.loras`."""
    import hashlib

    def sha256(image: np.ndarray | None) -> str | None:
        return None if image is None else hashlib.sha256(image.tobytes()).hexdigest()

    return {
        "bundle_sha256": digest,
        "image_sha256": sha256(prepared.image),
        **({} if prepared.last is None else {"last_sha256": sha256(prepared.last)}),
        "prompt": prepared.prompt,
        "negative": prepared.negative,
        "frames": prepared.frames,
        "seed": prepared.seed,
        "size": [prepared.height, prepared.width],
        "tiling": prepared.tiling and [number for number in astuple(prepared.tiling) if number is not None],
        **({"loras": [dict(lora) for lora in loras]} if loras else {}),
    }


def as_begun(prepared: PreparedAnimation, kept: Mapping[str, Any]) -> PreparedAnimation:
    """Return the request with the tiles of the journal's job: an earlier budget may have chosen them."""
    sides = kept.get("tiling")
    try:
        return replace(prepared, tiling=None if sides is None else Tiling(*sides))
    except TypeError:  # not a job: `check_job` reports it
        return prepared


def describe(
    prepared: PreparedAnimation, content: Manifest, digest: str, target: str, loras: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return what is needed to make the video again, except its image (JSON types)."""
    import importlib.metadata

    spelled = {} if prepared.asked == prepared.prompt else {"spelled": prepared.prompt}
    return job(prepared, digest, loras) | {"prompt": prepared.asked} | spelled | {
        "fps": prepared.fps, "bundle": content.name, "engine": target, "segue": importlib.metadata.version("segue"),
    }  # fmt: skip
