"""Write and read PNG files with Segue's metadata."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import OutputError, UsageError
from ..storage.files import write_whole

KEY = "segue"
_SAMPLERS = {
    "flow-match-euler": "Euler", "euler": "Euler", "euler-ancestral": "Euler a", "ddim": "DDIM", "lcm": "LCM",
    "tcd": "TCD", "dpm++2m": "DPM++ 2M",
}  # fmt: skip


def encode_png(image: np.ndarray, metadata: Mapping[str, Any] | None) -> bytes:
    """Return `image`, uint8 [height, width, 3] sRGB, as a PNG.

    `metadata` (JSON types) goes into an iTXt chunk `segue` as JSON, and into a chunk `parameters` as the text that
    other programs read: tEXt, or iTXt for words that Latin-1 lacks. None leaves both out. Raises UsageError for another
    dtype or shape.
    """
    from PIL import Image, PngImagePlugin

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(
            f"a picture must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}.", "Convert it first."
        )
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        chunks.add_itxt(KEY, json.dumps(dict(metadata), ensure_ascii=False))
        chunks.add_text("parameters", _in_words(metadata).replace("\0", " "))  # PNG allows no NUL in text
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write_png(path: str | os.PathLike[str], image: np.ndarray, metadata: Mapping[str, Any]) -> None:
    """Write `image` to `path` as `encode_png` makes it, whole or not at all; raises OutputError if it cannot."""
    data = encode_png(image, metadata)
    try:
        write_whole(Path(path), data)
    except OSError as error:
        raise OutputError(
            f"{os.fspath(path)} cannot be written: {error.strerror}.", "Name a place where you may write."
        ) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of the PNG at `path`, as `write_png` wrote it.

    Raises UsageError if there is no such picture or it has no Segue metadata.
    """
    table = find_metadata(path)
    if table is None:
        raise UsageError(f"{path} has no Segue metadata.", "Name a picture that Segue wrote.")
    return table


def find_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the metadata as `read_metadata` does; None if the PNG has none. Raises UsageError for any other file."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()  # text chunks may follow the pixels
            table = json.loads(picture.text[KEY])  # type: ignore[attr-defined]
    except KeyError:
        return None
    except Exception as error:  # a damaged file can make Pillow raise any error
        raise UsageError(f"{path} is not a readable PNG: {error}.", "Name a picture that Segue wrote.") from None
    return table if isinstance(table, dict) else None


def _in_words(metadata: Mapping[str, Any]) -> str:
    lines = [str(metadata.get("prompt", ""))]
    if metadata.get("negative"):
        lines.append(f"Negative prompt: {metadata['negative']}")
    size, sampler = metadata.get("size"), metadata.get("sampler", "euler")  # older pictures name none
    facts = {
        "Steps": metadata.get("steps"),
        "Sampler": _SAMPLERS.get(sampler, sampler),
        "CFG scale": metadata.get("guidance"),
        "Seed": metadata.get("seed"),
        "Size": size and f"{size[1]}x{size[0]}",
        "Model": metadata.get("bundle"),
        "Denoising strength": metadata.get("strength"),
        "Mask blur": metadata.get("feather"),
        "Version": f"segue {metadata['segue']}" if "segue" in metadata else None,
    }
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None)])
