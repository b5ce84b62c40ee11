"""Conditions of samples, computed once and read row by row. A distillation therefore keeps no encoder in memory.

A directory holds three kinds of files. If samples have several shapes, each shape has its own directory: `kind-0` ...

- `conditions-00000.safetensors` and so on: "states" and the family's other inputs, in up to `rows` rows
- `conditions.json`: the prompts
- `empty.safetensors`: the row of the empty prompt
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ....errors import TrainingError
from ....runtime.storage.directory import NewDirectory
from ...loop.run import step_generator
from ..families import Condition

Encode = Callable[[list[str]], Condition]


def write_conditions(
    out: Path,
    prompts: Sequence[str],
    encode: Encode,
    rows: int = 1024,
    batch: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the embeddings of `prompts` to the new directory `out`, as a whole or not at all.

    `progress` takes the numbers of finished and of all prompts. Raises OutputError if `out` exists or is not writable,
    TrainingError if there is no prompt.
    """
    if not prompts:
        raise TrainingError("there is no prompt. Give a file with one prompt a line.")
    with NewDirectory(out) as new:
        write_rows(
            new.path, prompts, lambda rows: encode([prompts[i] for i in rows]), encode([""]), rows, batch, progress
        )
        new.commit()


def write_rows(
    folder: Path, prompts: Sequence[str], make: Callable[[range], Condition], empty: Condition, rows: int, batch: int,
    progress: Callable[[int, int], None], shape: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    """Write the rows that `make` returns for ranges of row numbers, one for each prompt, into the directory `folder`.

    `shape` is the shape of a sample's latents, if the family's sizes do not give it.
    """
    save_file(_packed([empty]), folder / "empty.safetensors")
    for number, first in enumerate(range(0, len(prompts), rows)):
        last, parts = min(first + rows, len(prompts)), []
        for start in range(first, last, batch):
            stop = min(start + batch, last)
            parts.append(_packed([make(range(start, stop))]))
            progress(stop, len(prompts))
        save_file(_packed(parts), folder / _name(number))
    table = {"rows": rows, "prompts": list(prompts)} | ({"shape": list(shape)} if shape else {})
    (folder / "conditions.json").write_text(json.dumps(table))


def open_kinds(folder: Path) -> list[Conditions]:
    """Return the conditions of each kind of samples in `folder`: one, unless shapes differ."""
    kinds = sorted(folder.glob("kind-*"))
    return [Conditions(kind) for kind in kinds or [folder]]


class Conditions:
    """The prompts of a directory and their embeddings, read on demand."""

    def __init__(self, folder: Path) -> None:
        """Raise TrainingError if `folder` holds no embeddings."""
        try:
            found = json.loads((folder / "conditions.json").read_text())
            self.empty_row: Condition = load_file(folder / "empty.safetensors")
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{folder} holds no text embeddings ({type(error).__name__} while reading). Write them, then run "
                f"this again: segue encode CHECKPOINT PROMPTS.txt -o {folder}"
            ) from None
        self.folder = folder
        self.prompts: list[str] = found["prompts"]
        self.shape: tuple[int, ...] | None = tuple(found["shape"]) if "shape" in found else None
        self._rows: int = found["rows"]
        self._files: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, indices: Sequence[int]) -> Condition:
        """Return the conditions of the prompts at `indices`, one row each, in float32 except integers."""
        rows = [self._row(index) for index in indices]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: t.float() if t.is_floating_point() else t for name, t in stacked.items()}

    def empty(self, count: int) -> Condition:
        """Return the empty prompt's embeddings, float32, `count` times (views of one row)."""
        return {name: tensor.float().expand(count, *tensor.shape[1:]) for name, tensor in self.empty_row.items()}

    def _row(self, index: int) -> Condition:
        number, place = divmod(index, self._rows)
        try:
            if number not in self._files:  # opening a file takes longer than reading a row
                self._files[number] = safe_open(self.folder / _name(number), "pt")
            file = self._files[number]
            return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self.folder / _name(number)} cannot be read: {error}. Write the embeddings again with segue encode."
            ) from None


def permuted(count: int, seed: int, position: int) -> int:
    """Return the prompt at `position` of an endless shuffle of `count` prompts. Each pass uses every prompt once."""
    lap, place = divmod(position, count)
    return int(_order(count, seed, lap)[place])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, lap: int) -> torch.Tensor:
    return torch.randperm(count, generator=step_generator(seed, lap))


def _packed(parts: list[Condition]) -> Condition:
    # bf16 halves the size. The networks' bf16 products would round the same way.
    joined = {name: torch.cat([part[name] for part in parts]).contiguous().cpu() for name in parts[0]}
    return {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in joined.items()}


def _name(number: int) -> str:
    return f"conditions-{number:05d}.safetensors"
