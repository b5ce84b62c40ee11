"""Copy a checkpoint's files into a bundle, with converted weights on request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import OutputError
from ...runtime.bundle import manifest
from . import convert as weights
from . import headers, read


def copy(
    found: read.Checkpoint, target: Path, wanted: Mapping[str, str], progress: Callable[[str, int, int], None]
) -> dict[str, manifest.File]:
    """Copy the checkpoint's files to `target`, each folder's weights in the precision `wanted`; return their hashes.

    `progress` gets the file, the bytes done and the total. Raises OutputError before anything is copied if the disk has
    too little room.
    """
    heavy = {file for part in found.parts.values() for file in part.weights}
    _check_room(found, target, wanted)
    with headers.reading(found.root):
        total = sum((found.root / file).stat().st_size for file in found.files)
    done = 0
    files = {}
    for file in found.files:
        origin, copy = found.root / file, target / file
        kind = wanted.get(file.partition("/")[0], "keep")
        copy.parent.mkdir(parents=True, exist_ok=True)

        def count(n: int, file: str = file) -> None:
            nonlocal done
            done += n
            progress(file, done, total)

        with headers.reading(origin):
            if kind == "keep" or not (file in heavy or _names_dtype(file, found)):
                digest = weights.place(origin, copy, count)
            elif file in heavy:
                digest = weights.convert(origin, copy, kind, count)
            else:
                copy.write_bytes(_with_dtype(origin, file, kind, found))
                digest = weights.digest(copy)
        files[file] = manifest.File(digest, copy.stat().st_size, True)
    return files


def _check_room(found: read.Checkpoint, target: Path, wanted: Mapping[str, str]) -> None:
    """Raise OutputError if the files need more bytes than the disk of the directory `target` has free.

    A file that shares its blocks with the checkpoint needs none, and holes take none.
    """
    needed = 0
    for file in found.files:
        kind = wanted.get(file.partition("/")[0], "keep")
        with headers.reading(found.root):
            status = (found.root / file).stat()
            if kind != "keep" and file.endswith(".safetensors"):
                tensors = headers.read(found.root / file, file).values()
                needed += sum(_converted(tensor, kind) for tensor in tensors)
            elif not weights.shares_blocks(found.root / file, target):
                needed += min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise OutputError(
            f"the bundle needs {needed} bytes for the checkpoint's files, and the disk of {target.parent} has {free} "
            "free. Free some space, or choose a directory on another disk with -o."
        )


def _converted(tensor: headers.Tensor, kind: str) -> int:
    """Return the bytes of a tensor in another precision."""
    if not tensor.dtype.startswith(("F", "BF")):
        return tensor.length
    return tensor.length // headers.ITEM_BYTES[tensor.dtype] * headers.ITEM_BYTES[weights.DTYPES[kind]]


def _names_dtype(file: str, found: read.Checkpoint) -> bool:
    folder, _, name = file.partition("/")
    return folder in found.parts and (name == "config.json" or name.endswith(".index.json"))


def _with_dtype(path: Path, file: str, kind: str, found: read.Checkpoint) -> bytes:
    """Return a config or shard index whose dtype entries fit the converted weights."""
    table: dict[str, Any] = read.read_json(path, found.root)
    word = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[kind]
    for key in ("dtype", "torch_dtype"):
        if key in table:
            table[key] = word
    if isinstance(table.get("metadata"), dict) and "total_size" in table["metadata"]:
        table["metadata"]["total_size"] = sum(
            _converted(tensor, kind) for tensor in found.parts[file.partition("/")[0]].tensors.values()
        )
    return (json.dumps(table, indent=2) + "\n").encode()
