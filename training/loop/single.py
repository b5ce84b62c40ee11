"""A run of one network with one loss: every recipe except distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ...errors import TrainingError
from .ahead import Ahead
from .optimiser import make_optimisers, moments, set_steps
from .run import LoopSpec, learning_rate, step_generator


class Task(Protocol):
    """What a recipe trains: the module, the loss of a batch, the sample grid and the result."""

    module: nn.Module
    after: tuple[str, ...]  # as in loop.Run

    def draw(self, batch: int, generator: torch.Generator) -> Any:
        """Draw a batch with `generator`, on the processor."""
        ...

    def loss(self, drawn: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a drawn batch, and figures to log."""
        ...

    def grid(self) -> torch.Tensor | None:
        """As in loop.Run."""
        ...

    def finish(self, out: Path) -> None:
        """As in loop.Run."""
        ...


class SingleRun:
    """Trains a task by gradient descent and averages its weights over the steps (EMA)."""

    def __init__(self, task: Task, spec: LoopSpec) -> None:
        self.spec, self.task = spec, task
        self.after, self.grid, self.finish = task.after, task.grid, task.finish
        self.parameters = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._drawn = Ahead(lambda step: task.draw(spec.batch, step_generator(spec.seed, step)))
        self.optimisers = make_optimisers(
            spec.optimiser, task.module, spec.learning_rate, spec.beta2, spec.weight_decay
        )

    def iterate(self, step: int) -> dict[str, float]:
        """Do one step. Raises TrainingError, before a weight changes, if the loss or gradient is not finite."""
        spec = self.spec
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(spec, step)
        loss, figures = self.task.loss(self._drawn(step))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} at step {step}. The state before it is kept; "
                "lower loop.learning_rate in the recipe, then start again with another --out."
            )
        self.task.module.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), spec.clip)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient became {norm.item()} at step {step}. The state before it is kept; "
                "lower loop.learning_rate in the recipe, then start again with another --out."
            )
        for optimiser in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            decay = min(spec.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        return {"loss": loss.item(), "gradient norm": norm.item(), **figures}

    def check(self, step: int) -> None:
        """Raise TrainingError if a weight is not finite."""
        if not all(torch.isfinite(p).all() for p in self.parameters.values()):
            raise TrainingError(
                f"a weight is not finite after step {step - 1}. The state before it is kept; "
                "lower loop.learning_rate in the recipe, then start again with another --out."
            )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights, their average and the optimisers' moments."""
        found: dict[str, torch.Tensor] = {}
        for name, p in self.parameters.items():
            found |= {f"weight.{name}": p.detach(), f"average.{name}": self.average[name]}
        names = {p: name for name, p in self.parameters.items()}
        for optimiser in self.optimisers:
            found |= moments(optimiser, names)
        return found

    def restored(self, steps: int) -> None:
        """Set the optimisers' number of steps."""
        for optimiser in self.optimisers:
            set_steps(optimiser, steps)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Use the averaged weights inside the block."""
        return swapped(self.parameters, self.average)


@contextlib.contextmanager
def swapped(parameters: dict[str, nn.Parameter], other: dict[str, torch.Tensor]) -> Iterator[None]:
    """Use `other` for the parameters of the same names inside the block."""
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(other[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])
