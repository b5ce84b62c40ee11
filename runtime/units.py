"""Amounts of memory and sizes of pictures as people write them."""

from __future__ import annotations

import re
from types import MappingProxyType

from ..errors import UsageError

UNITS = MappingProxyType(
    {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
)


def bytes_of(value: int | str) -> int:
    """Return an amount as "8GiB", "512MiB", "6GB", or a number of bytes; raises UsageError for another one."""
    if isinstance(value, int) and value > 0:
        return value
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?(\w*)", str(value))
    size = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if size < 1:
        raise UsageError(f"{value!r} is no amount of memory. Write it as 8GiB, 512MiB or in bytes.")
    if found and not found[2] and size < 2**20:  # "8" is a slip for 8GiB more often than it is 8 bytes
        raise UsageError(f"{value!r} would be {size} bytes. Write {value}GiB or {value}MiB, or {value}B.")
    return size


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of "128" or "192x128", width x height; raises UsageError for another text."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    if found is None:
        raise UsageError(f"{text!r} is no size. Write 128, or width x height as in 192x128.")
    return int(found[2] or found[1]), int(found[1])


def mebibytes(value: int) -> int:
    """Return bytes as whole MiB, rounded up."""
    return -(-value // 2**20)
