"""Copy a checkpoint's files into a bundle, with converted weights on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...runtime.bundle import manifest
from . import convert as weights
from . import headers, read


def copy(
    found: read.Checkpoint, target: Path, wanted: Mapping[str, str], progress: Callable[[str, int, int], None]
) -> dict[str, manifest.File]:
    """Copy the checkpoint's files to `target`, each folder's weights in the precision `wanted`; return their hashes.

    `progress` gets the file, the bytes done and the total.
    """
    heavy = {file for part in found.parts.values() for file in part.weights}
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
            t.length // headers.ITEM_BYTES[t.dtype] * headers.ITEM_BYTES[weights.DTYPES[kind]]
            if t.dtype.startswith(("F", "BF"))
            else t.length
            for t in found.parts[file.partition("/")[0]].tensors.values()
        )
    return (json.dumps(table, indent=2) + "\n").encode()
