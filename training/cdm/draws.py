"""Draw the random data of one CDM iteration, sample by sample.

The key of a sample's stream is (seed, iteration, index in the global batch). Any number of processes therefore draws
the same iteration. All samples of an iteration have the same number of roll-out steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import TrainingError
from ...runtime.sampling.schedule import shift_sigmas
from .losses import clamp_level

SCHEDULES = ("dynamic", "stratified", "fixed")
WHOLE_BATCH, SHARED_SCHEDULE, PAIR_NOISE, KIND = range(2**63, 2**63 + 4)  # stream numbers beyond every sample's index


@dataclass(frozen=True)
class ScheduleSpec:
    """The levels of the student's roll-out (raw levels, before the shift)."""

    schedule: str = "dynamic"  # interior levels independent; "stratified": one in each equal bin; "fixed"
    longest: int = 28  # N ~ U{1 … longest}
    lowest: float = 0.25  # interior raw levels are uniform in [lowest, highest]
    highest: float = 0.95
    fixed: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    shared: bool = False  # one schedule for the whole batch (the authors' program: one for each GPU's share)
    shift: float = 3.0

    def __post_init__(self) -> None:
        """Raise TrainingError for impossible values."""
        if self.schedule not in SCHEDULES:
            raise TrainingError(f"[cdm.schedule] schedule = {self.schedule!r} must be one of {', '.join(SCHEDULES)}.")
        if not 0 < self.shift < float("inf"):
            raise TrainingError(f"[cdm.schedule] shift = {self.shift} must be above 0. Correct the recipe.")
        falling = all(a > b > 0 for a, b in itertools.pairwise(self.fixed))
        if self.longest < 1 or not 0 < self.lowest < self.highest <= 1 or self.fixed[:1] != (1.0,) or not falling:
            raise TrainingError(
                f"[cdm.schedule] longest = {self.longest}, lowest = {self.lowest}, highest = {self.highest}, fixed = "
                f"{self.fixed}: not possible. Correct the recipe: longest is at least 1, 0 < lowest < highest <= 1, "
                "and fixed decreases from 1."
            )


@dataclass(frozen=True)
class Renoise:
    """A noise level (B,) in [0.02, 0.98] and its noise (B, …)."""

    level: Tensor
    noise: Tensor

    def to(self, device: torch.device) -> Renoise:
        """Return the same on `device`."""
        return Renoise(self.level.to(device), self.noise.to(device))


@dataclass(frozen=True)
class Draws:
    """One iteration of B samples; float32, indices int64."""

    sigmas: Tensor  # (B, N + 1) shifted levels of the roll-out, 1 first, falling, 0 last
    anchor: Tensor  # (B,) in 0 … N - 1
    start: Tensor  # (B, …) the roll-out's first noise
    fake: Renoise
    ca: Renoise  # level at most the sample's anchor, except at the floor of 0.02
    dm: Renoise
    cdm: Renoise
    off: Tensor  # (B,) the level of the off-trajectory point
    off_noise: Tensor  # (B, …) for the off-trajectory point of the Gaussian ablation
    calls: int  # the roll-out's calls up to the global batch's last anchor, the same for every process

    def to(self, device: torch.device) -> Draws:
        """Return the same on `device`."""
        moved = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "calls"}
        return dataclasses.replace(self, **{name: value.to(device) for name, value in moved.items()})

    @property
    def anchor_sigma(self) -> Tensor:
        """Return the level (B,) of each sample's anchor."""
        return _at(self.sigmas, self.anchor)


def stream(seed: int, iteration: int, sample: int) -> np.random.Generator:
    """Return the random stream of one sample of one iteration (Philox 4x64, its own part of the counter)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=np.array([0, 0, sample, iteration], np.uint64)))


def draw_steps(spec: ScheduleSpec, seed: int, iteration: int) -> int:
    """Return the number N of roll-out steps of `iteration`."""
    if spec.schedule == "fixed":
        return len(spec.fixed)
    return int(stream(seed, iteration, WHOLE_BATCH).integers(1, spec.longest + 1))


def draw_kind(kinds: int, seed: int, iteration: int) -> int:
    """Return the index of the kind of samples in `iteration`. All samples of a batch have one shape."""
    return int(stream(seed, iteration, KIND).integers(kinds))


def draw_raw(spec: ScheduleSpec, steps: int, random: np.random.Generator) -> np.ndarray:
    """Return `steps` raw levels, float64, 1 first and falling."""
    if spec.schedule == "fixed":
        return np.array(spec.fixed)
    uniform = random.random(steps - 1)
    if spec.schedule == "stratified":
        uniform = (np.arange(steps - 1) + uniform) / max(steps - 1, 1)
    return np.append(1.0, np.sort(spec.lowest + (spec.highest - spec.lowest) * uniform)[::-1])


def draw(
    spec: ScheduleSpec, shape: tuple[int, ...], seed: int, iteration: int, samples: Sequence[int], batch: int
) -> Draws:
    """Return the draws of `samples` from a global batch of `batch`, on the processor.

    `shape` is the shape of one sample's latents.
    """
    steps = draw_steps(spec, seed, iteration)
    shared = draw_raw(spec, steps, stream(seed, iteration, SHARED_SCHEDULE))
    calls = 1 + max(_anchor(steps, stream(seed, iteration, sample)) for sample in range(batch))
    drawn = [_one(spec, shape, steps, shared, stream(seed, iteration, sample)) for sample in samples]
    raw, anchor, start, levels, noises = (torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True))
    sigmas = torch.cat([shift_sigmas(raw, spec.shift).float(), torch.zeros(len(raw), 1)], 1)
    levels[:, 1] *= _at(sigmas, anchor)  # CA stays below its anchor
    levels = clamp_level(levels)
    fake, ca, dm, cdm = (Renoise(levels[:, i], noises[:, i]) for i in range(4))
    return Draws(sigmas, anchor, start, fake, ca, dm, cdm, levels[:, 4], noises[:, 4], calls)


def _at(sigmas: Tensor, anchor: Tensor) -> Tensor:
    return sigmas.gather(1, anchor[:, None])[:, 0]


def _anchor(steps: int, random: np.random.Generator) -> int:
    return int(random.integers(steps))


def _one(
    spec: ScheduleSpec, shape: tuple[int, ...], steps: int, shared: np.ndarray, random: np.random.Generator
) -> tuple[Any, ...]:
    anchor = _anchor(steps, random)  # drawn first: every process computes every sample's anchor
    raw = shared if spec.shared else draw_raw(spec, steps, random)
    levels = random.random(5, np.float32)
    noise = random.standard_normal((6, *shape), np.float32)
    return raw, np.int64(anchor), noise[0], levels, noise[1:]
