"""Amounts of memory, sizes of pictures and whole numbers as people write them."""

from __future__ import annotations

import numbers
import re
from types import MappingProxyType

from ..errors import UsageError

UNITS = MappingProxyType(
    {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
)


SIDE = r"[1-9]\d{0,4}"  # pixels of one side
SIDES = f"{SIDE}x{SIDE}"  # width x height


def bytes_of(value: int | str) -> int:
    """Return the bytes of "8GiB", "512MiB", "6GB" or a number of bytes; raises UsageError for anything else."""
    if isinstance(value, int) and value > 0:
        return value
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?(\w*)", str(value))
    size = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if size < 1:
        raise UsageError(f"{value!r} is not an amount of memory. Write 8GiB, 512MiB or a number of bytes.")
    if found and not found[2] and size < 2**20:  # "8" is more often a slip for 8GiB than a wish for 8 bytes
        raise UsageError(
            f"{value!r} means {size} bytes. Write {value}GiB or {value}MiB, or {value}B if you mean bytes."
        )
    return size


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of "128" or "192x128" (width x height); raises UsageError for any other text."""
    found = re.fullmatch(f"({SIDE})(?:x({SIDE}))?", text, re.ASCII)
    if found is None:
        raise UsageError(f"{text!r} is not a size. Write 128, or width x height as in 192x128.")
    return int(found[2] or found[1]), int(found[1])


def mebibytes(value: int) -> int:
    """Return bytes as whole MiB, rounded up."""
    return -(-value // 2**20)


def is_whole(value: object) -> bool:
    """Return whether `value` is a whole number of Python or numpy (a bool is not)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an int; raises UsageError unless it is a whole number from `low` to `high`."""
    if not is_whole(value) or not low <= value <= high:  # type: ignore[operator]
        raise UsageError(f"{name} must be a whole number from {low} to {high}, got {value!r}.")
    return int(value)  # type: ignore[call-overload, no-any-return]
