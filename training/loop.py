"""The training loop that every recipe shares: optimise, average, log, draw, save, resume exactly.

Every random draw of step k comes from a generator seeded by (seed, k), so a run that was killed and resumed is the
unbroken run, bit for bit on a CPU, without any generator state on disk.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from ..errors import Cancelled, OutputError, TrainingError
from ..runtime.files import write_whole
from .optimiser import Muon, make_optimisers
from .state import load_state, save_state


@dataclass(frozen=True)
class LoopSpec:
    """How a run optimises. The learning rate warms up linearly, stays, then falls by a cosine over the last `decay`."""

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


class Task(Protocol):
    """What a recipe trains: the module, the loss of one batch, and what to show and write."""

    module: nn.Module
    after: tuple[str, ...]  # recipe keys that only what happens after training depends on: they may change on resuming

    def loss(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a batch drawn with `generator`, and figures to log."""
        ...

    def grid(self) -> torch.Tensor | None:
        """Return a sample grid (3, H, W) in [0, 1], drawn with the averaged weights."""
        ...

    def finish(self, out: Path) -> None:
        """Write the result below `out`; the averaged weights are in place."""
        ...


class Reporter(Protocol):
    """Receives the progress of a run."""

    def __call__(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Take the step just done, their total number and the logged figures."""
        ...


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator that draws everything random of one training step."""
    # The generator takes 32 bits of seed; the odd factor keeps the streams of small seeds apart.
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + step) & 0xFFFFFFFF)


def learning_rate(spec: LoopSpec, step: int) -> float:
    """Return the learning rate of `step` (0-based)."""
    warm = min(1.0, (step + 1) / max(spec.warmup, 1))
    left = (spec.steps - step) / max(spec.decay, 1)
    return spec.learning_rate * warm * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def run(task: Task, spec: LoopSpec, recipe: dict, out: Path, report: Reporter) -> None:
    """Train `task` to `spec.steps`, from the newest state below `out` where there is one, then let it write its result.

    Raises Cancelled on Ctrl-C and TrainingError when the loss is not finite; the last saved state stays.
    """
    from torch.utils.tensorboard import SummaryWriter

    out.mkdir(parents=True, exist_ok=True)
    parameters = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in parameters.items()}
    optimisers = make_optimisers(spec.optimiser, task.module, spec.learning_rate, spec.beta2, spec.weight_decay)
    first = _restore(load_state(out, recipe, ("loop.steps", *task.after)), parameters, average, optimisers)
    log = _Log(out / "losses.jsonl", first)
    writer = SummaryWriter(out / "tensorboard", purge_step=first)
    step = first
    try:
        for step in range(first, spec.steps):
            started = time.perf_counter()
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(spec, step)
            loss, figures = task.loss(spec.batch, step_generator(spec.seed, step))
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss.item()} at step {step}. The state before it is kept in {out}; "
                    "lower loop.learning_rate in the recipe, then start again with another --out."
                )
            task.module.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters.values(), spec.clip)
            for optimiser in optimisers:
                optimiser.step()
            with torch.no_grad():
                decay = min(spec.ema, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)
            figures = {"loss": loss.item(), "gradient norm": norm.item(), **figures}
            log.write(step, figures)
            report(step + 1, spec.steps, figures)
            if step % spec.log_every == 0:
                seconds = time.perf_counter() - started
                for name, value in {**figures, "samples per second": spec.batch / seconds}.items():
                    writer.add_scalar(name, value, step)
            if (step + 1) % spec.grid_every == 0:
                with averaged(parameters, average):
                    grid = task.grid()
                if grid is not None:
                    writer.add_image("samples", grid, step)
                    _save_grid(grid, out / f"grid-{step + 1:08d}.png")
            if (step + 1) % spec.save_every == 0 or step + 1 == spec.steps:
                log.keep()
                save_state(out, step + 1, _tensors(parameters, average, optimisers), recipe)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}. Make room, then run the same command again.") from error
    except KeyboardInterrupt:
        # The interrupted step may be half applied: the newest whole state is the one to go on from.
        raise Cancelled(
            f"stopped at step {step}. Run the same command again to go on from the last saved state."
        ) from None
    finally:
        writer.close()
        log.close()
    with averaged(parameters, average):
        task.finish(out)


@contextlib.contextmanager
def averaged(parameters: dict[str, nn.Parameter], average: dict[str, torch.Tensor]) -> Iterator[None]:
    """Put the averaged weights in place for the time of the block."""
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(average[name])
        yield
        for name, p in parameters.items():
            p.copy_(kept[name])


def _tensors(
    parameters: dict[str, nn.Parameter], average: dict[str, torch.Tensor], optimisers: list[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, p in parameters.items():
        tensors[f"weight.{name}"] = p
        tensors[f"average.{name}"] = average[name]
        for optimiser in optimisers:
            moments = {kind: tensor for kind, tensor in optimiser.state.get(p, {}).items() if kind != "step"}
            tensors |= {f"{kind}.{name}": tensor for kind, tensor in moments.items()}
    return tensors


def _restore(
    saved: tuple[int, dict[str, torch.Tensor]] | None,
    parameters: dict[str, nn.Parameter],
    average: dict[str, torch.Tensor],
    optimisers: list[torch.optim.Optimizer],
) -> int:
    if saved is None:
        return 0
    step, tensors = saved
    names = {p: name for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"weight.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
        for optimiser in optimisers:
            kinds = ("momentum",) if isinstance(optimiser, Muon) else ("exp_avg", "exp_avg_sq")
            for p in (p for group in optimiser.param_groups for p in group["params"]):
                # The fused optimiser walks memory, so its moments must be laid out as the weight is.
                moments = {kind: torch.empty_like(p).copy_(tensors[f"{kind}.{names[p]}"]) for kind in kinds}
                optimiser.state[p] = {"step": torch.tensor(float(step), device=p.device), **moments}
    return step


class _Log:
    """The loss curve as JSON lines; on resuming, lines of steps that will be done again are dropped."""

    def __init__(self, path: Path, first: int) -> None:
        if path.exists():
            # A killed run may have torn its last line; whole lines end with a line feed.
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_whole(path, "".join(line for line in whole if json.loads(line)["step"] < first).encode())
        self._file = path.open("a")

    def write(self, step: int, figures: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()

    def keep(self) -> None:
        """Flush to disk, so that a saved state never outlives its curve."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _save_grid(grid: torch.Tensor, path: Path) -> None:
    from PIL import Image

    Image.fromarray((grid.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().cpu().numpy()).save(path)
