"""Merge LoRA files at export. Changed weights go into a patch file; the checkpoint's own weights stay unchanged.

W' = W + factor alpha / rank D, in float32, one weight at a time; `forms` has the changes D. Several files are merged
one after another. With DoRA the meaning of the factor depends on the file. In peft's it scales D before the norm is
set. In kohya's it mixes: 0 is W, and 1 is the weight with the new norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....errors import CheckpointError
from .. import convert, headers
from ..headers import Tensor
from . import forms
from .layouts import Piece
from .read import Change, Changes, Lora, read

PATCH = "lora.safetensors"  # in the component's folder


def merge(
    loras: Sequence[Lora], parts: Mapping[str, Mapping[str, Tensor]], kinds: Mapping[str, str], bundle: Path
) -> dict[str, str]:
    """Write a patch file for each component that the files change; return them by folder, relative to `bundle`.

    `parts` are the bundle's tensors by folder, `kinds` the precision of each folder. Raises CheckpointError for a file
    that is not a LoRA of these components, for shapes that do not fit, and for a weight that becomes too large.
    """
    changes: Changes = {}
    for lora in loras:
        for place, of in read(lora, parts).items():
            changes.setdefault(place, []).extend(of)
    written = {}
    for folder in dict.fromkeys(folder for folder, _ in changes):
        dtype = convert.DTYPES[kinds[folder]]
        file = f"{folder}/{PATCH}"
        tensors = [parts[folder][name] for of, name in changes if of == folder]
        size = headers.ITEM_BYTES[dtype]
        head = headers.encode([(t.name, dtype, t.shape, size * math.prod(t.shape)) for t in tensors])
        with (bundle / file).open("xb") as out:
            out.write(head)
            for tensor in tensors:
                of = changes[folder, tensor.name]
                merged = _merged(bundle, parts[folder], folder, tensor.name, changes, len(of))
                if not np.isfinite(merged).all() or np.abs(merged).max() > convert.MAXIMA[dtype]:
                    raise CheckpointError(
                        f"{of[0][0].path} makes {tensor.name!r} larger than {kinds[folder]} can hold. "
                        "Lower its factor, or export with --precision fp32."
                    )
                out.write(convert.pack(merged, dtype))
        written[folder] = file
    return written


def _merged(
    bundle: Path, tensors: Mapping[str, Tensor], folder: str, name: str, changes: Changes, count: int
) -> np.ndarray:
    """Return a weight after the first `count` of its changes."""
    tensor = tensors[name]
    weight = convert.read_tensor(bundle / tensor.file, tensor).reshape(tensor.shape[0] if tensor.shape else 1, -1)
    tail = tensor.shape[1:]
    for change, piece in changes[folder, name][:count]:
        with np.errstate(over="ignore", invalid="ignore"):
            share = np.float32(change.scale) * _delta(change, piece, tail)
            if change.magnitude is None:
                weight = weight + np.float32(change.factor) * share
                continue
            by = np.float32(change.factor if change.vector else 1.0)
            moved = weight + by * share
            magnitude = convert.read_tensor(change.path, change.magnitude)
            if not forms.by_input(change.magnitude.shape, change.rows, tail, change.vector):
                square = np.square(moved).sum(1, keepdims=True)
                own = magnitude.reshape(-1, 1)[_rows(piece)]
            else:
                square = np.zeros((1, tail[0]), np.float32)
                for other in change.pieces:  # the norm runs over all rows, those of other weights as well
                    before = _before(changes[folder, other.tensor], change)
                    whole = _merged(bundle, tensors, folder, other.tensor, changes, before)
                    whole = whole.reshape(len(whole), -1) + by * np.float32(change.scale) * _delta(change, other, tail)
                    square += np.square(whole).reshape(len(whole), tail[0], -1).sum((0, 2))
                kernel = math.prod(tail[1:])
                square = np.repeat(square, kernel, axis=1)
                own = np.repeat(magnitude.reshape(1, -1), kernel, axis=1)
            aimed = forms.decomposed(moved, own, square)
            weight = aimed if change.vector else weight + np.float32(change.factor) * (aimed - weight)
    return weight.reshape(tensor.shape)


def _delta(change: Change, piece: Piece, tail: tuple[int, ...]) -> np.ndarray:
    shapes = {part: tensor.shape for part, tensor in change.parts.items()}
    return forms.delta(change.part, shapes, tail, _rows(piece))


def _rows(piece: Piece) -> np.ndarray | slice:
    return slice(None) if piece.rows is None else piece.rows


def _before(changes: Sequence[tuple[Change, Piece]], change: Change) -> int:
    """Return how many changes of a weight come before this one."""
    return next(n for n, (other, _) in enumerate(changes) if other is change)
