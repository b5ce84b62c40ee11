"""The pictures that a request gives: one to begin with, its mask, and references.

A picture is cropped to its middle and scaled to the size of the request, and its mask in the same way. References keep
their shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .bundle.limits import MAX_REFERENCE, MAX_SIDE
from .media.read_image import blurred, fitted, resized
from .units import whole_number

STRENGTH = 0.6  # of a request that names none; with a mask it is 1


@dataclass(frozen=True, eq=False)
class Start:
    """The picture that a request begins with, at the size of the request.

    - `image`: uint8 [height, width, 3]; `given` is its (height, width) before it was cropped.
    - `mask`: float32 [height, width], 1 where it is redrawn and 0 where it stays. None: all is redrawn.
    - `step`: the first step of the schedule that runs. `whole`: it begins with pure noise.
    """

    image: np.ndarray
    given: tuple[int, int]
    mask: np.ndarray | None
    strength: float
    feather: int
    step: int
    whole: bool
    digest: str
    mask_digest: str | None

    @property
    def pixels(self) -> np.ndarray:
        """Return the picture as the encoder takes it, float32 [1, 3, height, width] in [-1, 1]."""
        return as_input(self.image)

    def latent_mask(self, factor: int) -> np.ndarray:
        """Return the mask of the latents, float32 [1, 1, height / factor, width / factor].

        A latent pixel takes the largest value of its square, so that no masked pixel is left.
        """
        assert self.mask is not None
        height, width = self.mask.shape
        squares = self.mask.reshape(height // factor, factor, width // factor, factor)
        return squares.max((1, 3))[None, None]

    def kept(self, image: np.ndarray) -> np.ndarray:
        """Return a drawn picture, uint8 [height, width, 3], with the pixels that the mask keeps."""
        if self.mask is None:
            return image
        share = self.mask[..., None]
        mixed = share * image + (1 - share) * self.image
        return mixed.round().astype(np.uint8)


def as_input(image: np.ndarray) -> np.ndarray:
    """Return a picture, uint8 [height, width, 3], as float32 [1, 3, height, width] in [-1, 1]."""
    levels = image.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return levels.transpose(2, 0, 1)[None]


def check_picture(name: str, image: object) -> np.ndarray:
    """Return `image`; raises UsageError unless it is uint8 [height, width, 3]. `name` is its field."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise UsageError(
            f"{name} must be uint8 [height, width, 3], got {array.dtype} {list(array.shape)}. Read a file with "
            "segue.read_image."
        )
    return array


def check_alone(**values: object) -> None:
    """Raise UsageError if a value that belongs to a picture was given without one."""
    for name, value in values.items():
        if value is not None:
            raise UsageError(f"{name} was given without a picture to begin with. Give image too, or leave it out.")


def start_of(
    image: object, mask: object, strength: float, feather: int, size: tuple[int, int], step: int, whole: bool
) -> Start:
    """Return the start of a request for pictures of `size` (height, width); the others are those of `Start`.

    Raises UsageError for values that do not fit.
    """
    given = check_picture("image", image)
    feather = whole_number("feather", feather, 0, MAX_SIDE)
    if feather and mask is None:
        raise UsageError(f"feather = {feather} softens the edge of a mask. Give mask too, or leave it out.")
    share = None
    if mask is not None:
        levels = np.asarray(mask)
        if levels.dtype != np.uint8 or levels.shape != given.shape[:2]:
            raise UsageError(
                f"mask must be uint8 {list(given.shape[:2])}, as the picture is, got {levels.dtype} "
                f"{list(levels.shape)}. 255 is redrawn, 0 stays."
            )
        share = blurred(fitted(levels, *size), feather).astype(np.float32) / np.float32(255)
    return Start(
        fitted(given, *size), (given.shape[0], given.shape[1]), share, strength, feather, step, whole, digest_of(given),
        None if mask is None else digest_of(np.asarray(mask)),
    )  # fmt: skip


def strength_of(strength: float | None, mask: object) -> float:
    """Return a checked strength, above 0 and at most 1; raises UsageError."""
    if strength is None:
        return STRENGTH if mask is None else 1.0
    number = isinstance(strength, int | float | np.integer | np.floating) and not isinstance(strength, bool)
    if not number or not 0 < strength <= 1:
        raise UsageError(f"strength must be above 0 and at most 1, got {strength!r}. Try {STRENGTH:g}.")
    return float(strength)


def references_of(
    given: Sequence[object], most: int, multiple: int, name: str, masked: bool = False
) -> tuple[np.ndarray, ...]:
    """Return the reference pictures of a request, uint8 [height, width, 3] each, with sides that are multiples.

    A larger one is scaled down to `MAX_REFERENCE` pixels, and then cropped to its middle (diffusers'
    Flux2KleinPipeline). `most` is the number that the bundle called `name` takes. With `masked` it takes one less,
    because the picture under the mask is a reference too. Raises UsageError.
    """
    if not isinstance(given, list | tuple):
        raise UsageError(f"references must be a list of pictures, got {type(given).__name__}. Give [picture].")
    if len(given) > max(most - masked, 0):
        takes = f"at most {most - masked} reference pictures" if most > masked else "no reference pictures"
        takes += " beside a mask" if most and masked else ""
        count = "1 reference picture was" if len(given) == 1 else f"{len(given)} reference pictures were"
        raise UsageError(f"{count} given, and {name} takes {takes}. Leave some out.")
    return tuple(_reference(check_picture(f"reference {number}", one), multiple) for number, one in enumerate(given, 1))


def _reference(image: np.ndarray, multiple: int) -> np.ndarray:
    height, width = image.shape[:2]
    if height * width > MAX_REFERENCE:
        scale = math.sqrt(MAX_REFERENCE / (height * width))
        height, width = max(int(height * scale), 1), max(int(width * scale), 1)
        image = resized(image, height, width)
    rows, columns = height // multiple * multiple, width // multiple * multiple
    if not rows or not columns:
        raise UsageError(
            f"a reference picture of {width}x{height} is too small: both sides must have {multiple} pixels. "
            "Scale it up."
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def digest_of(image: np.ndarray) -> str:
    """Return the sha256 of a picture's pixels."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
