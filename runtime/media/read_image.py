"""Read an input picture or a mask: a file that Pillow reads becomes pixels, sRGB or grey, of the requested size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageFilter, ImageOps, UnidentifiedImageError

from ...errors import UsageError
from ..bundle.limits import MAX_SIDE

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
MAX_PIXELS = 64_000_000
# No format that runs another program, as EPS does
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def read_image(
    path: str | os.PathLike[str] | IO[bytes], background: tuple[int, int, int] = WHITE, name: str | None = None
) -> np.ndarray:
    """Return the picture at `path` (or in an open file, called `name` in errors), uint8 [height, width, 3] in sRGB.

    Its EXIF orientation and its embedded colour profile are applied, transparent pixels show `background`, and an
    animation gives its first frame. Raises UsageError for a file that is absent, not a picture, or too large (16,384
    pixels a side, 64 million in total).
    """
    return _read(path, name, lambda picture: as_pixels(picture, background))


def read_mask(path: str | os.PathLike[str] | IO[bytes], name: str | None = None) -> np.ndarray:
    """Return the mask at `path` (or in an open file, called `name` in errors), uint8 [height, width].

    Its brightness counts: white (255) is redrawn, black (0) stays. Transparent pixels count as black. If all visible
    pixels of a file with transparent ones have the same colour, the visible ones are redrawn; if that colour is black,
    the transparent ones. Raises the errors of `read_image`.
    """
    return _read(path, name, as_mask)


def read_transparent(path: str | os.PathLike[str] | IO[bytes], name: str | None = None) -> np.ndarray:
    """Return the mask at `path` in OpenAI's form, uint8 [height, width]: 255 where it is fully transparent, else 0.

    Raises the errors of `read_image`, and UsageError if no pixel is fully transparent.
    """

    def convert(picture: Image.Image) -> np.ndarray:
        turned = ImageOps.exif_transpose(picture).convert("RGBA")
        clear = np.asarray(turned.getchannel("A")) == 0
        if not clear.any():
            raise UsageError(
                f"{name or path} has no fully transparent pixel, so nothing would be redrawn.",
                "Make the part transparent that shall change.",
            )
        return clear.astype(np.uint8) * np.uint8(255)

    return _read(path, name, convert)


def _read(
    path: str | os.PathLike[str] | IO[bytes], name: str | None, convert: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    shown = name or path
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if max(picture.size) > MAX_SIDE or picture.width * picture.height > MAX_PIXELS:  # before a pixel is decoded
                raise UsageError(
                    f"{shown} has {picture.width} x {picture.height} pixels, more than {MAX_SIDE} a side or "
                    f"{MAX_PIXELS / 1e6:.0f} million.",
                    "Scale it down.",
                )
            return convert(picture)
    except UsageError:
        raise
    except Exception as error:  # a damaged file can make Pillow raise any error
        # Pillow's own words for an unknown format name an object of the program
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise UsageError(f"{shown} cannot be read as a picture: {reason}.", "Name a PNG, JPEG or WebP file.") from None


def as_pixels(picture: Image.Image, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Return a Pillow picture of any mode as `read_image` does."""
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith(("I", "F")):  # 16 and 32 bits: divide by the mode's largest usual value
        levels = np.asarray(turned, np.float64) / (1.0 if turned.mode == "F" else 65535.0)
        return (np.clip(levels, 0, 1) * 255).round().astype(np.uint8)[..., None].repeat(3, -1)
    profile = turned.info.get("icc_profile")
    alpha = turned.convert("RGBA").getchannel("A") if turned.has_transparency_data else None
    colours = _in_srgb(turned, profile) if profile else turned.convert("RGB")
    if alpha is not None:
        ground = Image.new("RGB", turned.size, background)
        ground.paste(colours, mask=alpha)
        colours = ground
    return np.asarray(colours).copy()


def as_mask(picture: Image.Image) -> np.ndarray:
    """Return a Pillow picture of any mode as `read_mask` does."""
    grey = np.asarray(Image.fromarray(as_pixels(picture, BLACK)).convert("L"))
    if not picture.has_transparency_data:
        return grey.copy()
    turned = np.asarray(ImageOps.exif_transpose(picture).convert("RGBA"))
    alpha = turned[..., 3]
    visible = turned[alpha > 0][:, :3]
    if alpha.min() == 255 or not len(visible) or (visible != visible[0]).any():
        return grey.copy()
    return alpha.copy() if visible[0].any() else 255 - alpha


def fitted(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `image`, uint8 [h, w, 3] or a mask [h, w], cropped to its middle and resized by Pillow's Lanczos."""
    picture = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture).copy()


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `image`, uint8 [h, w, 3], resized to `height` x `width` by Pillow's Lanczos."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)).copy()


def blurred(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return a mask, uint8 [h, w], with soft edges; `radius` is the standard deviation in pixels, 0 for none."""
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius))).copy() if radius else mask


def test_pattern(height: int, width: int) -> np.ndarray:
    """Return a test picture, uint8 [height, width, 3], whose grey levels rise and fall diagonally."""
    return (np.indices((height, width, 3)).sum(0) * 5 % 256).astype(np.uint8)


def _in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    plain = picture if picture.mode in ("RGB", "L", "CMYK") else picture.convert("RGB")
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        found = ImageCms.profileToProfile(plain, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one for another colour model
        return picture.convert("RGB")
    return found or picture.convert("RGB")
