"""Pairs of noise and the guided teacher's result, for the regression of a student's estimates.

A directory holds `pairs.json` and `pairs-00000.safetensors` and so on. Each file has "row" (the prompt's index in the
embeddings) and "end" (the clean latents, fp16) of up to SHARD pairs. The seed recreates the noise, so no file keeps it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ....errors import TrainingError
from ....runtime.sampling.schedule import default_schedule
from ....runtime.storage.files import write_whole
from ...loop.device import mixed_precision, training_device
from ...pictures.sampling import euler
from ..draws import PAIR_NOISE, stream
from ..families import Condition, Family, find_family
from ..names import SD3
from ..networks import load_teacher
from .conditions import Conditions, permuted

SHARD = 512


@dataclass(frozen=True)
class PairsSpec:
    """How to make the pairs, with two calls of the teacher per step."""

    teacher: str
    conditions: str
    family: str = SD3
    size: tuple[int, int] = (1024, 1024)  # height and width in pixels
    count: int = 20000
    steps: int = 28
    guidance: float = 3.0
    shift: float = 3.0
    seed: int = 0


def pair_noise(shape: Sequence[int], seed: int, pair: int) -> Tensor:
    """Return the noise of one pair, float32, of `shape`."""
    return torch.from_numpy(stream(seed, pair, PAIR_NOISE).standard_normal(tuple(shape), np.float32))


def write_pairs(spec: PairsSpec, out: Path, batch: int, progress: Callable[[int, int], None]) -> None:
    """Write the pairs below `out`, `batch` at once. Skip finished shards.

    Raises TrainingError if `out` holds pairs of another spec.
    """
    family, device = find_family(spec.family), training_device()
    conditions = Conditions(Path(spec.conditions))
    out.mkdir(parents=True, exist_ok=True)
    teacher: Any = load_teacher(Path(spec.teacher), family).eval().requires_grad_(False).to(device)
    shape = family.shape(teacher.config, *spec.size)
    _claim(spec, made_for(spec.family, conditions, shape), out)
    schedule = default_schedule(spec.steps, spec.shift, 1000)
    for number, first in enumerate(range(0, spec.count, SHARD)):
        shard = range(first, min(first + SHARD, spec.count))
        if (out / _name(number)).is_file():
            continue
        rows = [permuted(len(conditions), spec.seed, pair) for pair in shard]
        ends = []
        for start in range(0, len(shard), batch):
            noise = torch.stack([pair_noise(shape, spec.seed, pair) for pair in shard[start : start + batch]])
            text, empty = conditions.take(rows[start : start + batch]), conditions.empty(len(noise))
            both = {name: torch.cat([empty[name], text[name]]).to(device) for name in text}
            velocity = partial(_guided, teacher, family, spec.guidance, both)
            ends.append(euler(velocity, noise.to(device), schedule).half().cpu())
            progress(shard[start] + len(noise), spec.count)
        write_whole(out / _name(number), save({"row": torch.tensor(rows), "end": torch.cat(ends)}))


class Pairs:
    """The pairs of a directory, all in memory (8 KiB each for the emoji model)."""

    def __init__(self, folder: Path) -> None:
        """Raise TrainingError if `folder` does not hold all its pairs."""
        try:
            written = json.loads((folder / "pairs.json").read_text())
            shards = [load_file(folder / _name(number)) for number in range(-(-written["count"] // SHARD))]
            self._seed: int = written["seed"]
            self.made_for = {name: written[name] for name in ("family", "prompts", "shape")}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise TrainingError(
                f"{folder} does not hold all its pairs ({type(error).__name__} while reading). Write them, then run "
                f"this again: segue pairs TEACHER EMBEDDINGS -o {folder}"
            ) from None
        self.rows: list[int] = torch.cat([shard["row"] for shard in shards]).tolist()
        self.ends = torch.cat([shard["end"] for shard in shards])

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Return noise and clean latents, float32 (B, …), and the prompts' rows."""
        shape = self.ends.shape[1:]
        noise = torch.stack([pair_noise(shape, self._seed, index) for index in indices])
        return noise, self.ends[list(indices)].float(), [self.rows[index] for index in indices]


@torch.no_grad()
def _guided(
    network: nn.Module, family: Family, guidance: float, both: Condition, latents: Tensor, level: Tensor
) -> Tensor:
    with mixed_precision(latents.device):
        velocity = family.velocity(network, torch.cat([latents] * 2), torch.cat([level] * 2), both).float()
    free, tied = velocity.chunk(2)
    return free + guidance * (tied - free)


def made_for(family: str, conditions: Conditions, shape: Sequence[int]) -> dict[str, Any]:
    """Return the properties that pairs and distillation must share."""
    prompts = hashlib.sha256("\n".join(conditions.prompts).encode()).hexdigest()
    return {"family": family, "prompts": prompts, "shape": list(shape)}


def _claim(spec: PairsSpec, common: dict[str, Any], out: Path) -> None:
    path, wanted = out / "pairs.json", asdict(spec) | {"size": list(spec.size)} | common
    if path.is_file() and json.loads(path.read_text()) != wanted:
        raise TrainingError(f"{out} holds pairs of other settings: {path} differs. Name another directory.")
    write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())


def _name(number: int) -> str:
    return f"pairs-{number:05d}.safetensors"
