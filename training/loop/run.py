"""The training loop of all recipes: iterate, log, draw, save, resume exactly.

A generator seeded by (seed, k) makes every random draw of step k. A resumed run therefore equals the unbroken run, bit
for bit on a CPU, and saves no generator state.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...errors import Cancelled, TrainingError
from ...runtime.storage.files import writing
from .log import Log
from .state import find_state, is_first, load_state, save_state


@dataclass(frozen=True)
class LoopSpec:
    """How a run optimises. The learning rate rises linearly, stays, then falls by a cosine over the last `decay`."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    decay: int = 0
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 1.0
    optimiser: str = "adamw"  # or "muon"
    ema: float = 0.999
    seed: int = 0
    log_every: int = 10
    save_every: int = 200
    grid_every: int = 500


class Run(Protocol):
    """What the loop drives: weights, a training step, sample grids and the result."""

    after: tuple[str, ...]  # recipe keys that do not affect training: a resumed run may change them

    def iterate(self, step: int) -> dict[str, float]:
        """Do one step and return the figures to log, with "loss". Raises TrainingError if the run diverges."""
        ...

    def check(self, step: int) -> None:
        """Raise TrainingError if the run diverged before `step`. A diverged state is never saved."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of a saved state, by name. Loading writes into these tensors."""
        ...

    def restored(self, steps: int) -> None:
        """Update the run after a load: `tensors` hold the state after `steps` steps."""
        ...

    def averaged(self) -> AbstractContextManager[Any]:
        """Use the averaged weights inside the block."""
        ...

    def grid(self) -> torch.Tensor | None:
        """Return a sample grid (3, H, W) in [0, 1] of the averaged weights."""
        ...

    def finish(self, out: Path) -> None:
        """Write the result below `out`. The caller has put the averaged weights in place."""
        ...


class Reporter(Protocol):
    """Takes the progress of a run."""

    def __call__(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Take the finished step, the number of steps and the logged figures."""
        ...


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random generator of one training step."""
    # The generator takes a seed of 32 bits. The odd factor separates the streams of small seeds.
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + step) & 0xFFFFFFFF)


def learning_rate(spec: LoopSpec, step: int) -> float:
    """Return the learning rate of `step` (0-based)."""
    warm = min(1.0, (step + 1) / max(spec.warmup, 1))
    left = (spec.steps - step) / max(spec.decay, 1)
    return spec.learning_rate * warm * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def run(training: Run, spec: LoopSpec, recipe: dict, out: Path, report: Reporter) -> None:
    """Train to `spec.steps` and write the result. Start from the newest state below `out`, if any.

    Each of several training processes calls this. Raises Cancelled on Ctrl-C and TrainingError if the run diverges. The
    last saved state stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = 0
    if found := find_state(out, recipe, ("loop.steps", *training.after)):
        first, state = found
        load_state(state, training.tensors())
        training.restored(first)
    log = Log(out, first) if is_first() else None
    step = first
    try:
        for step in range(first, spec.steps):
            started = time.perf_counter()
            figures = training.iterate(step)
            seconds = time.perf_counter() - started
            if log:
                with writing(out):
                    log.write(step, figures)
                    if step % spec.log_every == 0:
                        log.plot(step, {**figures, "samples per second": spec.batch / seconds})
                report(step + 1, spec.steps, figures)
            if (step + 1) % spec.grid_every == 0:
                with training.averaged():
                    grid = training.grid()
                if log and grid is not None:
                    with writing(out):
                        log.show(step + 1, grid)
            if (step + 1) % spec.save_every == 0 or step + 1 == spec.steps:
                training.check(step + 1)
                with writing(out):
                    if log:
                        log.keep()
                    save_state(out, step + 1, training.tensors(), recipe)
    except KeyboardInterrupt:
        # The interrupted step may be half applied: continue from the newest complete state.
        raise Cancelled(
            f"stopped at step {step}. Run the same command again to go on from the last saved state."
        ) from None
    finally:
        if log:
            log.close()
    try:
        with training.averaged():
            training.finish(out)
    except OSError as error:
        raise TrainingError(
            f"{out} is trained, but its result cannot be written: {error}. Restore the recipe's input files, or free "
            "disk space, then run the same command again."
        ) from error
