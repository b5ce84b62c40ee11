"""The options for input pictures, shared by the commands that draw, plan and compare."""

from __future__ import annotations

import functools
import io
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from ...errors import UsageError
from ...runtime.bundle.limits import MAX_SIDE

if TYPE_CHECKING:
    import numpy as np

PIPE = Path("-")
MAX_PIPE = 2**28  # bytes of a file on standard input
FILE = click.Path(path_type=Path)


def input_pictures(command: Any) -> Any:
    """Add --image, --strength, --mask, --feather and --reference; the command gets `inputs`, arguments of `Request`.

    Files are read before the command begins. `inputs` holds only what was given.
    """

    @click.option("--image", type=FILE, help="Begin with this picture, or - for one on standard input.")
    @click.option(
        "--strength", type=click.FloatRange(0, 1, min_open=True),
        help="Share of the steps to run on --image: less keeps more of it (default: 0.6, with --mask 1).",
    )  # fmt: skip
    @click.option("--mask", type=FILE, help="Picture as large as --image: what is white is redrawn, black stays.")
    @click.option(
        "--feather", type=click.IntRange(0, MAX_SIDE), help="Soften the edge of --mask, in pixels of the result."
    )
    @click.option(
        "--reference", "references", type=FILE, multiple=True,
        help="Picture to draw from, for models that take some. Repeatable.",
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(
        *args: Any, image: Path | None, strength: float | None, mask: Path | None, feather: int | None,
        references: tuple[Path, ...], **options: Any,
    ) -> Any:  # fmt: skip
        given = {"strength": strength, "feather": feather}
        inputs: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return command(*args, inputs=inputs | _read(image, mask, references, set(inputs)), **options)

    return wrapped


def _read(image: Path | None, mask: Path | None, references: tuple[Path, ...], numbers: set[str]) -> dict[str, Any]:
    """Return the pictures that were given; `numbers` are the names of the other options that were."""
    if [image, mask, *references].count(PIPE) > 1:
        raise UsageError("standard input holds one picture, and - was given more than once. Name files.")
    alone = [name for name in ("mask", "strength", "feather") if name in numbers or (name == "mask" and mask)]
    if image is None and alone:
        raise UsageError(f"--{alone[0]} works on a picture. Give --image too, or leave it out.")
    if mask is None and "feather" in numbers:
        raise UsageError("--feather softens the edge of a mask. Give --mask too, or leave it out.")
    if image is None and not references:
        return {}
    from ...runtime.media.read_image import read_image, read_mask

    found: dict[str, Any] = {}
    if image is not None:
        found["image"] = read_image(_opened("--image", image), name=f"--image {image}")
    if mask is not None:
        found["mask"] = read_mask(_opened("--mask", mask), name=f"--mask {mask}")
        _check_sizes(image, mask, found["image"], found["mask"])
    if references:
        found["references"] = [
            read_image(_opened("--reference", path), name=f"--reference {path}") for path in references
        ]
    return found


def _opened(option: str, path: Path) -> Path | IO[bytes]:
    if path != PIPE:
        return path
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(f"{option} - reads standard input, which holds no picture. Write {option} FILE, or pipe one.")
    data = sys.stdin.buffer.read(MAX_PIPE + 1)
    if len(data) > MAX_PIPE:
        raise UsageError(f"standard input holds more than {MAX_PIPE >> 20} MiB. Scale the picture down.")
    return io.BytesIO(data)


def _check_sizes(image: Path | None, mask: Path, pixels: np.ndarray, share: np.ndarray) -> None:
    if share.shape != pixels.shape[:2]:
        (rows, columns), (height, width) = share.shape, pixels.shape[:2]
        raise UsageError(
            f"--mask {mask} has {columns}x{rows} pixels and --image {image} {width}x{height}. Scale the mask to "
            f"{width}x{height}."
        )
