"""Copy weight files into a bundle, unchanged or converted tensor by tensor. Files are read in pieces, never mapped.

An unchanged file shares its blocks with the checkpoint's file if the file system can (FICLONE on btrfs, xfs,
bcachefs); else it is copied. It is never a hard link or symlink: onnx, onnx-ir and polygraphy refuse external data with
a link count above 1, and ONNX Runtime refuses a link that leaves the directory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import CheckpointError
from ...runtime.storage.safetensors import floats, widened
from ...runtime.storage.safetensors import read_tensor as read_tensor
from . import headers

PIECE = 8 * 2**20
FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
MAXIMA = {"F16": 65504.0, "BF16": 2.0**127 * (2 - 2**-7), "F32": float(np.finfo(np.float32).max)}


def place(source: Path, target: Path, count: Callable[[int], None] = lambda n: None) -> str:
    """Copy `source` to the new file `target`; return its sha256. `count` gets the bytes done.

    The hash is of the content of `target`, even if `source` changes meanwhile. Raises OSError, with the file's name if
    `source` cannot be read.
    """
    with source.open("rb") as reader, target.open("x+b") as writer:
        shared = _share_blocks(reader, writer)
        digest = hashlib.sha256()
        while piece := _read(writer if shared else reader, PIECE, target if shared else source):
            digest.update(piece)
            if not shared and piece.count(0) == len(piece):
                writer.seek(len(piece), os.SEEK_CUR)  # a hole stays a hole
            elif not shared:
                writer.write(piece)
            count(len(piece))
        if not shared:
            writer.truncate()
    return digest.hexdigest()


def digest(path: Path) -> str:
    """Return the sha256 of the file at `path` in hexadecimal."""
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def convert(source: Path, target: Path, precision: str, count: Callable[[int], None] = lambda n: None) -> str:
    """Write the safetensors file `source` to `target` with every floating tensor in `precision`; return its sha256.

    `precision` is "fp32", "fp16" or "bf16"; other tensors are unchanged. Names and order are kept, and the metadata is
    "format": "pt", which transformers needs. Raises CheckpointError for a finite value beyond the range of `precision`,
    and for float8; OSError as `place` does.
    """
    table = headers.read(source, source.name)
    wanted = DTYPES[precision]
    plan = []
    for tensor in table.values():
        if tensor.dtype.startswith("F8"):
            raise CheckpointError(
                f"{source.name} holds {tensor.name!r} in {tensor.dtype}, which Segue does not convert. "
                "Dequantise the checkpoint first."
            )
        dtype = wanted if tensor.dtype.startswith(("F", "BF")) else tensor.dtype
        items = tensor.length // headers.ITEM_BYTES[tensor.dtype]
        plan.append((tensor, dtype, items * headers.ITEM_BYTES[dtype]))
    head = headers.encode([(t.name, dtype, t.shape, length) for t, dtype, length in plan])
    hashed = hashlib.sha256(head)
    with source.open("rb") as reader, target.open("xb") as writer:
        writer.write(head)
        for tensor, dtype, _ in plan:
            reader.seek(tensor.offset)
            left = tensor.length
            while left:
                piece = _read(reader, min(PIECE, left), source)
                if not piece:
                    raise CheckpointError(f"{source} ended while it was read. Export again once it is whole.")
                left -= len(piece)
                count(len(piece))
                piece = piece if dtype == tensor.dtype else _cast(piece, tensor, dtype)
                hashed.update(piece)
                writer.write(piece)
    return hashed.hexdigest()


def write(target: Path, arrays: dict[str, np.ndarray], precision: str) -> str:
    """Write float32 `arrays` as a safetensors file in `precision` (fp32, fp16 or bf16); return its sha256."""
    dtype = DTYPES[precision]
    data = {name: pack(array, dtype) for name, array in arrays.items()}
    head = headers.encode([(name, dtype, arrays[name].shape, len(data[name])) for name in arrays])
    content = head + b"".join(data.values())
    with target.open("xb") as writer:
        writer.write(content)
    return hashlib.sha256(content).hexdigest()


def pack(array: np.ndarray, dtype: str) -> bytes:
    """Return float32 `array` as little-endian bytes in safetensors `dtype`; BF16 is rounded to nearest even.

    NaN stays NaN: rounding alone would carry CUDA's own, whose bits are all ones, over into a zero.
    """
    if dtype == "F16":
        return array.astype("<f2").tobytes()
    if dtype == "F32":
        return array.astype("<f4").tobytes()
    bits = array.astype("<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2").tobytes()


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _cast(piece: bytes, tensor: headers.Tensor, dtype: str) -> bytes:
    values = floats(piece, tensor.dtype)
    with np.errstate(over="ignore"):
        # float64 goes to half through float32, as torch does.
        result = values.astype("<f4", copy=False)
        if dtype == "BF16":
            packed = pack(result, dtype)
            result = widened(packed)
        else:
            result = result.astype({"F16": "<f2", "F32": "<f4"}[dtype], copy=False)
            packed = result.tobytes()
    lost = np.isfinite(values) & ~np.isfinite(result)
    if lost.any():
        worst = np.abs(values[lost]).max()
        held = f"{tensor.file} holds {worst:.6g} in {tensor.name!r}, beyond"
        if worst > MAXIMA["F32"]:
            raise CheckpointError(
                f"{held} fp32's {MAXIMA['F32']:.6g}, and no graph is in float64. Correct that tensor."
            )
        kind = {stored: name for name, stored in DTYPES.items()}[dtype]
        raise CheckpointError(f"{held} {kind}'s {MAXIMA[dtype]:.6g}. Export with --precision fp32.")
    return packed


def shares_blocks(source: Path, directory: Path) -> bool:
    """Return whether a copy of the file `source` in `directory` would share its blocks and so take no room."""
    with source.open("rb") as reader, tempfile.TemporaryFile(dir=directory) as writer:
        return _share_blocks(reader, writer)  # type: ignore[arg-type]


def _share_blocks(reader: BinaryIO, writer: BinaryIO) -> bool:
    try:
        import fcntl  # absent on Windows

        fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
    except (ImportError, OSError):
        return False
    return True
