"""What samples are to show, computed once and read row by row, so that no encoder is in memory during distillation.

A directory holds `conditions-00000.safetensors` and so on, each with a row of "states", and of what else the family
takes, for up to `rows` prompts; `conditions.json` with the prompts; and the empty prompt's row in `empty.safetensors`.
Where samples have several shapes, there is such a directory for each: `kind-0` and so on.
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
    """Write the embeddings of `prompts` to the new directory `out`, whole or not at all.

    `progress` takes the number of prompts done and of all. Raises OutputError where `out` exists or cannot be written,
    TrainingError where nothing is given.
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
    """Write what `make` gives for ranges of row numbers, one row a prompt, into the directory `folder`.

    `shape` is that of a sample's latents, where the family's sizes do not say it.
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
    """Return the conditions of each kind of samples that `folder` holds; one, unless their shapes differ."""
    kinds = sorted(folder.glob("kind-*"))
    return [Conditions(kind) for kind in kinds or [folder]]


class Conditions:
    """The prompts of a directory and their embeddings, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Raise TrainingError where `folder` holds no embeddings."""
        try:
            found = json.loads((folder / "conditions.json").read_text())
            self.empty_row: Condition = load_file(folder / "empty.safetensors")
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{folder} holds no text embeddings ({type(error).__name__} on reading them). Write them, then run "
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
        """Return the conditions of the prompts at `indices`, one row each; float32, but for integers."""
        rows = [self._row(index) for index in indices]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: t.float() if t.is_floating_point() else t for name, t in stacked.items()}

    def empty(self, count: int) -> Condition:
        """Return the empty prompt's embeddings, float32, `count` times (views of one row)."""
        return {name: tensor.float().expand(count, *tensor.shape[1:]) for name, tensor in self.empty_row.items()}

    def _row(self, index: int) -> Condition:
        number, place = divmod(index, self._rows)
        try:
            if number not in self._files:  # opening one takes longer than reading a row
                self._files[number] = safe_open(self.folder / _name(number), "pt")
            file = self._files[number]
            return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self.folder / _name(number)} cannot be read: {error}. Write the embeddings again with segue encode."
            ) from None


def permuted(count: int, seed: int, position: int) -> int:
    """Return which of `count` prompts stands at `position` of an endless sequence without repeats within a pass."""
    lap, place = divmod(position, count)
    return int(_order(count, seed, lap)[place])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, lap: int) -> torch.Tensor:
    return torch.randperm(count, generator=step_generator(seed, lap))


def _packed(parts: list[Condition]) -> Condition:
    # bf16 loses nothing that the networks' bf16 products would keep, at half the room.
    joined = {name: torch.cat([part[name] for part in parts]).contiguous().cpu() for name in parts[0]}
    return {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in joined.items()}


def _name(number: int) -> str:
    return f"conditions-{number:05d}.safetensors"
