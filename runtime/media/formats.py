"""Encode a picture as PNG, JPEG or WebP, with its metadata, and read the metadata of JPEG and WebP files.

A PNG keeps every pixel. JPEG and WebP are smaller and change pixels a little; EXIF's user comment holds the metadata.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import UsageError
from .png import KEY, encode_png

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # by a name's ending
MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_EXIF, _USER_COMMENT = 0x8769, 0x9286  # tags: the EXIF directory, and its field for text
_ASCII = b"ASCII\0\0\0"  # EXIF's mark of a comment's character set


def encode_picture(image: np.ndarray, kind: str, metadata: Mapping[str, Any] | None, quality: int = 100) -> bytes:
    """Return `image`, uint8 [height, width, 3] sRGB, as a file of `kind`: png, jpeg or webp.

    `metadata` (JSON types) is written as JSON; None leaves it out. `quality`, 0 to 100, is that of JPEG and WebP.
    Raises UsageError for another dtype or shape, and for more than 64 KiB of metadata in a JPEG.
    """
    from PIL import Image

    if kind == "png":
        return encode_png(image, metadata)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(
            f"a picture must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}.", "Convert it first."
        )
    exif = Image.Exif()
    if metadata is not None:
        exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + json.dumps({KEY: dict(metadata)}).encode("ascii")
    buffer = io.BytesIO()
    try:
        # 0 would be Pillow's own default; small coloured shapes need every pixel's colour
        settings = {"quality": max(quality, 1), "subsampling": 0} if kind == "jpeg" else {"quality": quality}
        Image.fromarray(image).save(buffer, kind.upper(), exif=exif if metadata is not None else b"", **settings)
    except ValueError as error:
        if metadata is None:
            raise
        raise UsageError(
            f"the metadata does not fit into a {kind.upper()} file: {error}.", "Shorten the prompt, or choose png."
        ) from None
    return buffer.getvalue()


def find_comment(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the metadata of a JPEG or WebP file; None if it has none. Raises UsageError for any other file."""
    from PIL import Image

    try:
        with Image.open(path, formats=["JPEG", "WEBP"]) as picture:
            comment = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    except (OSError, ValueError, SyntaxError) as error:
        raise UsageError(f"{path} is not a readable picture: {error}.", "Name a picture that Segue wrote.") from None
    try:
        table = json.loads(bytes(comment or b"").removeprefix(_ASCII))[KEY]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return table if isinstance(table, dict) else None
