"""The hybrid reference of SwiftI2V: Stage I's motion at Stage II's size, with the input image as its first frame.

The splice happens in pixels, before Stage II's encoder. The encoder's first latent frame depends only on the first
frame, so it equals the image latent. The caches of the causal encoder carry the sharp frame on (arXiv 2605.06356,
figure of the method). The paper does not publish its kernel; this one is bicubic. Training uses the same function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ...errors import UsageError


def hybrid_reference(frames: Iterable[np.ndarray], image: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the reference's frames, float32 [height, width, 3] in [-1, 1], in the size of `image`.

    `frames` come from Stage I. `image` is the input image, float32 [height, width, 3] in [-1, 1]; it replaces the first
    of `frames`. Memory holds one frame at a time. Raises UsageError for another shape.
    """
    _check(image)
    for number, frame in enumerate(frames):
        yield image if number == 0 else upsampled(frame, image.shape[0], image.shape[1])


def upsampled(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `frame`, float32 [h, w, 3] in [-1, 1], at `height` x `width` by Pillow's bicubic kernel, in [-1, 1]."""
    from PIL import Image

    _check(frame)
    planes = [
        Image.fromarray(np.ascontiguousarray(frame[..., c])).resize((width, height), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    return np.clip(np.stack([np.asarray(plane) for plane in planes], -1), -1, 1)


def _check(frame: np.ndarray) -> None:
    if frame.dtype != np.float32 or frame.ndim != 3 or frame.shape[2] != 3:
        raise UsageError(
            f"a frame must be float32 [height, width, 3], got {frame.dtype} {list(frame.shape)}. Convert it first."
        )
