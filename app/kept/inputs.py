"""The pictures that a job is given: one to begin with, its mask, references, and the last one of a video."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...errors import UsageError
from ...runtime.bundle.families import family_of
from ...runtime.bundle.manifest import Manifest
from ...runtime.input_picture import references_of
from ...runtime.media.png import write_png
from ...runtime.media.read_image import read_image, read_mask
from ...runtime.storage.files import writing

INPUT, MASK, LAST, REFERENCE = "input.png", "mask.png", "last.png", "reference-{}.png"
REFERENCES = REFERENCE.format("*")
KEYS = ("image", "mask", "references", "last")  # of a job's request; they name files of its directory
MOST = 16  # pictures of a request, as with OpenAI

Reader = Callable[[IO[bytes], str], np.ndarray]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The pictures of a job: uint8 [height, width, 3], `mask` is uint8 [height, width]."""

    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    references: tuple[np.ndarray, ...] = ()
    last: np.ndarray | None = None  # of a video

    def names(self) -> dict[str, Any]:
        """Return the keys of a job's request that name the files."""
        found: dict[str, Any] = {}
        if self.image is not None:
            found["image"] = INPUT
        if self.mask is not None:
            found["mask"] = MASK
        if self.references:
            found["references"] = [REFERENCE.format(number) for number, _ in enumerate(self.references, 1)]
        if self.last is not None:
            found["last"] = LAST
        return found

    def write(self, place: Path) -> None:
        """Make the job's directory and write the files; raises OutputError."""
        with writing(place):
            place.mkdir(mode=0o700, parents=True)
        if self.image is not None:
            write_png(place / INPUT, self.image, {})
        if self.mask is not None:
            write_png(place / MASK, self.mask[..., None].repeat(3, -1), {})
        for number, one in enumerate(self.references, 1):
            write_png(place / REFERENCE.format(number), one, {})
        if self.last is not None:
            write_png(place / LAST, self.last, {})


NONE = Inputs()


def inputs_in(place: Path, request: dict[str, Any]) -> Inputs:
    """Return the pictures that a job's request names, read from its directory; raises UsageError."""
    return Inputs(
        read_image(place / request["image"]) if "image" in request else None,
        read_image(place / request["mask"])[..., 0] if "mask" in request else None,
        tuple(read_image(place / name) for name in request.get("references", ())),
        read_image(place / request["last"]) if "last" in request else None,
    )


def named(place: Path, kind: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return a job's request with the name of its picture, which older versions did not write for videos."""
    old = kind == "video" and "image" not in request and (place / INPUT).is_file()
    return request | {"image": INPUT} if old else request


def sent(key: str, text: str, read: Reader = lambda file, name: read_image(file, name=name)) -> np.ndarray:
    """Return what `read` makes of a file that was sent in base64 or as a data URL; `key` is its name for people.

    Raises UsageError.
    """
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode("".join(text.split()), validate=True)  # other programs break it into lines
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"{key} is not valid base64: {error}. Send the bytes of the file in base64.") from None
    return read(io.BytesIO(data), f"the {key} that was sent")


def mask_sent(text: str) -> np.ndarray:
    """Return a mask that was sent in base64 or as a data URL, uint8 [height, width]; raises UsageError."""
    return sent("mask", text, read_mask)


def check_mask(mask: np.ndarray, image: np.ndarray) -> None:
    """Raise UsageError unless a mask has the size of its picture."""
    if mask.shape != image.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape)]
        raise UsageError(f"the mask has {sizes[0]} pixels, and the picture {sizes[1]}. Send a mask of its size.")


def check_references(count: int, content: Manifest, name: str, masked: bool) -> None:
    """Raise UsageError if the bundle called `name` does not take `count` reference pictures, beside a mask or not."""
    most = family_of(content).references
    if count > max(most - masked, 0):
        references_of([np.zeros((1, 1, 3), np.uint8)] * count, most, content.sizes.multiple, name, masked)


def reduced(reference: np.ndarray, content: Manifest) -> np.ndarray:
    """Return a reference picture as the model takes it, so that large ones do not add up in memory."""
    (made,) = references_of([reference], 1, content.sizes.multiple, content.name)
    return made
