"""Read a LoRA file: which weights it changes, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....errors import CheckpointError
from ....runtime.lora.file import ADVICE, LoraFile, read_lora
from .. import convert
from ..headers import Tensor
from . import forms
from .layouts import Piece
from .names import BIAS, WEIGHT, Index, Module, denoiser_of


@dataclass(frozen=True)
class Lora:
    """A LoRA file, the factor at which it is merged, and the folder that it changes (empty: the denoiser's)."""

    path: Path
    scale: float = 1.0
    folder: str = ""


@dataclass(frozen=True)
class Change:
    """What a file does to one tensor of a layout, which may be several `pieces` of the checkpoint.

    `scale` is alpha / rank, without the file's factor. `vector` tells that a DoRA magnitude is peft's.
    """

    path: Path
    stem: str
    parts: Mapping[str, Tensor]
    magnitude: Tensor | None
    vector: bool
    rows: int
    scale: float
    factor: float
    pieces: tuple[Piece, ...]

    def part(self, name: str) -> np.ndarray:
        """Return a part in float32."""
        return convert.read_tensor(self.path, self.parts[name])


Changes = dict[tuple[str, str], list[tuple[Change, Piece]]]  # by folder and tensor


def read(lora: Lora, parts: Mapping[str, Mapping[str, Tensor]]) -> Changes:
    """Return the changes of a file, in its order; `parts` are the checkpoint's tensors by folder.

    Raises CheckpointError, with the key, for a file of another model, for parts that do not fit, and for a key that
    belongs to no known form.
    """
    if lora.folder and lora.folder not in parts:
        raise CheckpointError(
            f"{lora.path} is for the folder {lora.folder!r}, which the checkpoint lacks. "
            f"Choose one of {', '.join(parts)}."
        )
    index = Index(parts, lora.folder or denoiser_of(parts))
    file = read_lora(lora.path)
    found: Changes = {}
    seen: dict[tuple[str, frozenset[str]], str] = {}
    for stem, held in file.modules.items():
        if (place := index.find(stem)) is None:
            raise CheckpointError(
                f"{lora.path} changes {next(iter(held.values())).name!r}, which the checkpoint lacks. {ADVICE}"
            )
        folder, module = place
        own = frozenset(piece.tensor for pieces in module.values() for piece in pieces)
        if (twin := seen.setdefault((folder, own), stem)) != stem:
            raise CheckpointError(f"{lora.path} changes one weight as {twin!r} and as {stem!r}. Fetch the file again.")
        for change in _changes(lora, file, stem, folder, module, parts[folder]):
            for piece in change.pieces:
                found.setdefault((folder, piece.tensor), []).append((change, piece))
    return found


def _changes(
    lora: Lora, file: LoraFile, stem: str, folder: str, module: Module, tensors: Mapping[str, Tensor]
) -> list[Change]:
    held = file.modules[stem]
    own = {part: t for part, t in held.items() if part not in ("alpha", "dora_scale", "vector", "diff_b", "up_bias")}
    bias = {part: held[part] for part in ("diff_b", "up_bias") if part in held}
    magnitude = held.get("dora_scale") or held.get("vector")
    if own and frozenset(own) not in forms.FORMS:
        first = min(own)
        half = frozenset(own) < forms.LORA
        raise CheckpointError(
            f"{lora.path} changes {own[first].name!r}, which "
            f"{'has no second half' if half else 'is not all of a known form'}. Fetch the file again."
        )
    lone = next((t for part, t in held.items() if part not in ("diff", "diff_b") and not own), None)
    if lone is not None:
        raise CheckpointError(
            f"{lora.path} holds {lone.name!r} without the change it belongs to. Fetch the file again."
        )
    result, scale = [], 1.0
    if own:
        pieces = _pieces(lora, own, module, WEIGHT)
        tail = tensors[pieces[0].tensor].shape[1:]
        rows = sum(tensors[piece.tensor].shape[0] if tensors[piece.tensor].shape else 1 for piece in pieces)
        try:
            size = forms.size({part: t.shape for part, t in own.items()}, tail)
            if (size.rows, size.columns) != (rows, math.prod(tail)):
                raise ValueError(f"it is {size.rows} x {size.columns}")
            if magnitude is not None:
                forms.by_input(magnitude.shape, rows, tail, "vector" in held)
        except ValueError as error:
            shapes = " and ".join(str(list(t.shape)) for t in own.values())
            raise CheckpointError(
                f"{lora.path} has {shapes} for {next(iter(own.values())).name!r}, a weight of {[rows, *tail]}: "
                f"{error}. {ADVICE}"
            ) from None
        if size.rank is not None:
            scale = file.scale(stem, folder, size.rank)
        result.append(Change(lora.path, stem, own, magnitude, "vector" in held, rows, scale, lora.scale, pieces))
    for part, tensor in bias.items():
        pieces = _pieces(lora, {part: tensor}, module, BIAS)
        rows = sum(math.prod(tensors[piece.tensor].shape) for piece in pieces)
        if tensor.shape != (rows,):
            raise CheckpointError(
                f"{lora.path} has {list(tensor.shape)} for {tensor.name!r}, a bias of [{rows}]. {ADVICE}"
            )
        by = scale if part == "up_bias" else 1.0
        result.append(Change(lora.path, stem, {"diff": tensor}, None, False, rows, by, lora.scale, pieces))
    return result


def _pieces(lora: Lora, parts: Mapping[str, Tensor], module: Module, kind: str) -> tuple[Piece, ...]:
    if kind not in module:
        name = next(iter(parts.values())).name
        raise CheckpointError(f"{lora.path} changes {name!r}, a {kind} which the checkpoint lacks. {ADVICE}")
    return module[kind]
