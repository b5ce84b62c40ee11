"""Read the header of a safetensors file, and single tensors. Nothing in the file is trusted.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors back to back.
Source: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, SegueError
from ...runtime.storage.git import FETCH, is_pointer

MAX_HEADER = 100_000_000  # the limit of the safetensors library
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """The place of one tensor: file (as the caller names it), offset and length in bytes, safetensors dtype, shape."""

    name: str
    file: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


def read(path: Path, file: str) -> dict[str, Tensor]:
    """Return the tensors of the safetensors file at `path` by name, in file order; they name their file `file`.

    Raises CheckpointError for a file that cannot be read, and for a malformed header: wrong lengths, overlaps, holes,
    offsets beyond the file, sizes that do not fit the shape, unknown dtypes, a name given twice, a header above 100 MB.
    """
    with reading(path), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if is_pointer(path):
            raise CheckpointError(f"{path} is a pointer of git-lfs, not the file itself. {FETCH}")
        if size < 10 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise _broken(file, f"its header claims {length} bytes in a file of {size}")
        text = stream.read(length)
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"its header is not valid JSON ({error})") from None
    if not isinstance(table, dict):
        raise _broken(file, "its header is not an object")
    table.pop("__metadata__", None)
    tensors = sorted(
        (_tensor(name, entry, file, 8 + length) for name, entry in table.items()), key=lambda t: (t.offset, t.length)
    )
    position = 8 + length
    for tensor in tensors:
        if tensor.offset != position:
            kind = "overlaps the tensor before it" if tensor.offset < position else "leaves a hole before it"
            raise _broken(file, f"tensor {tensor.name!r} {kind} (begins at {tensor.offset}, expected {position})")
        position += tensor.length
    if position != size:
        raise _broken(file, f"its tensors end at byte {position} and the file at {size}")
    return {tensor.name: tensor for tensor in tensors}


def read_tensor(path: Path, tensor: Tensor) -> np.ndarray:
    """Return a floating tensor of the safetensors file at `path`, float32; raises CheckpointError for other dtypes."""
    if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
        raise CheckpointError(
            f"{path} holds {tensor.name!r} in {tensor.dtype}, which is not a floating type. Fetch the file again."
        )
    with reading(path), path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(tensor.length)
    if len(data) != tensor.length:
        raise CheckpointError(f"{path} ended while it was read. Fetch the file again.")
    return floats(data, tensor.dtype).astype(np.float32).reshape(tensor.shape)


def floats(data: bytes, dtype: str) -> np.ndarray:
    """Return the numbers of F64, F32, F16 or BF16; those of BF16 as float32."""
    if dtype == "BF16":
        return widened(data)
    return np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])


def widened(data: bytes) -> np.ndarray:
    """Return bf16 as float32."""
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


def metadata(path: Path) -> dict[str, Any]:
    """Return the texts that stand beside the tensors of the file at `path`, whose header `read` has accepted."""
    with reading(path), path.open("rb") as file:
        found = json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__")
    return found if isinstance(found, dict) else {}


@contextmanager
def reading(place: Path, kind: type[SegueError] = CheckpointError) -> Iterator[None]:
    """Turn an OSError that names `place`, or a file below it, into a `kind`."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if not isinstance(name, (str, os.PathLike)) or not Path(name).is_relative_to(place):
            raise
        raise kind(
            f"{os.fspath(name)} cannot be read ({error.strerror}). Check its permissions, or fetch it again."
        ) from None


def encode(tensors: list[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Return the header (with its length) of a file of `tensors`: (name, dtype, shape, bytes), in this order."""
    table, position = {}, 0
    for name, dtype, shape, length in tensors:
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + length]}
        position += length
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as the safetensors library writes them
    return len(text).to_bytes(8, "little") + text


def _tensor(name: str, entry: Any, file: str, start: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(file, f"tensor {name!r} is described by {str(entry)[:80]!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_BYTES if isinstance(dtype, str) else True:
        raise _broken(file, f"tensor {name!r} has the dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _broken(file, f"tensor {name!r} has shape {str(shape)[:60]} and offsets {str(offsets)[:60]}")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _broken(file, f"tensor {name!r} of shape {shape} in {dtype} claims {end - begin} bytes")
    return Tensor(name, file, start + begin, end - begin, dtype, tuple(shape))


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is given twice")
    return table


def _broken(file: str, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or not a safetensors file: {what}. Fetch the file again.")
