"""The CDM iteration on real networks, in one process or in several that share a global batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import TrainingError
from ..loop.ahead import Ahead
from ..loop.optimiser import moments, set_steps
from ..loop.run import LoopSpec, learning_rate
from ..loop.single import swapped
from .data.conditions import Conditions, permuted
from .data.pairs import Pairs
from .draws import Draws, draw, draw_kind
from .families import Condition
from .losses import ema_decay
from .networks import TRAINED, Networks
from .spec import CdmSpec, updates
from .terms import Pull, RollOut, fake_term, roll_out, student_pulls, student_terms


@dataclass(frozen=True)
class Place:
    """This process's share of the global batch."""

    rank: int = 0
    world: int = 1

    def samples(self, batch: int) -> range:
        """Return the indices of this process's samples in a global batch of `batch`."""
        if batch % self.world:
            raise TrainingError(
                f"loop.batch = {batch} cannot be split over {self.world} processes. Choose a multiple of {self.world}."
            )
        part = batch // self.world
        return range(self.rank * part, (self.rank + 1) * part)


class Distillation:
    """Student, teachers, optimisers and the student's average. A call of `iterate` is one iteration.

    The key of every draw is (seed, iteration, sample): `iterate(k)` gives the same result after a restored state.
    """

    def __init__(
        self, networks: Networks, kinds: Sequence[Conditions], shape: tuple[int, ...], spec: CdmSpec, loop: LoopSpec,
        device: torch.device, place: Place | None = None, pairs: Pairs | None = None,
    ) -> None:  # fmt: skip
        self.networks, self.kinds, self.shape = networks, tuple(kinds), shape
        self.spec, self.loop, self.device = spec, loop, device
        self.place = place or Place()
        self._student, self._real, self._fake = (
            partial(networks.velocity, role) for role in ("student", "real", "fake")
        )
        self.pairs = pairs
        self._check_conditions()
        self._drawn = Ahead(self._draw)
        self.parameters = {role: networks.parameters(role) for role in TRAINED}
        self.average = {name: p.detach().clone() for name, p in self.parameters["student"].items()}
        self.optimisers = {
            role: torch.optim.AdamW(
                list(parameters.values()),
                lr=0.0,
                betas=(0.9, loop.beta2),
                weight_decay=loop.weight_decay,
                fused=not spec.shard,
            )
            for role, parameters in self.parameters.items()
        }

    def iterate(self, step: int) -> dict[str, float]:
        """Do one iteration: train the fake teacher, and the student each `student_every`-th time.

        Returns the figures to log, the same in every process. "loss" is the fake teacher's loss: only its value is
        meaningful. Raises TrainingError if the student has diverged, before the iteration changes a weight.
        """
        spec, rate = self.spec, learning_rate(self.loop, step)
        parts = list(self._parts(step))
        figures = {"estimate rms": self._size_of_estimates(parts, step)}
        student: list[Tensor] = list(self.parameters["student"].values())
        if spec.terms.matches:
            fake_rate = rate * spec.fake_learning_rate / self.loop.learning_rate
            figures |= self._update("fake", self._fake_losses(parts), fake_rate)
            with torch.no_grad():
                torch._foreach_lerp_(list(self.parameters["fake"].values()), student, spec.pull)
        if updates(spec, step + 1) > updates(spec, step):
            figures |= self._update("student", self._student_losses(parts), rate)
            kept = ema_decay(updates(spec, step + 1), spec.decay)
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), student, 1 - kept)
        return figures

    def pulls(self, step: int) -> Iterator[dict[str, Pull]]:
        """Yield the pulls of the student's terms in the iteration, and change nothing."""
        for part in self._parts(step):
            given = part.draws, part.path, part.text, part.empty
            yield from student_pulls(self._student, self._real, self._fake, *given, self.spec.terms, part.end)

    def check(self, step: int) -> None:
        """Raise TrainingError if the student diverged up to iteration `step`. A diverged state is never saved."""
        self._size_of_estimates(list(self._parts(step)), step)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of student and fake teacher, the average, and both optimisers' moments."""
        found: dict[str, Tensor] = {f"average.{name}": tensor for name, tensor in self.average.items()}
        for role, parameters in self.parameters.items():
            found |= {f"weight.{role}.{name}": p.detach() for name, p in parameters.items()}
            found |= moments(self.optimisers[role], {p: f"{role}.{name}" for name, p in parameters.items()})
        return found

    def restored(self, steps: int) -> None:
        """Set the optimisers' number of steps after `steps` iterations."""
        set_steps(self.optimisers["fake"], steps)
        set_steps(self.optimisers["student"], updates(self.spec, steps))

    def averaged(self) -> AbstractContextManager[None]:
        """Use the student's averaged weights inside the block."""
        return swapped(self.parameters["student"], self.average)

    def _draw(self, step: int) -> list[tuple[Draws, Condition, Tensor | None]]:
        """Return draws, texts and the teacher's ends of this process's samples, `micro` at a time."""
        spec, loop = self.spec, self.loop
        mine = self.place.samples(loop.batch)
        size = spec.micro or len(mine)
        kind = self.kinds[draw_kind(len(self.kinds), loop.seed, step)]
        drawn = []
        for start in range(mine.start, mine.stop, size):
            samples = range(start, min(start + size, mine.stop))
            draws = draw(spec.schedule, kind.shape or self.shape, loop.seed, step, samples, loop.batch)
            count = len(self.pairs or kind)
            rows = [permuted(count, loop.seed, step * loop.batch + sample) for sample in samples]
            end = None
            if self.pairs is not None:
                noise, end, rows = self.pairs.take(rows)
                draws = dataclasses.replace(draws, start=noise)
            drawn.append((draws, kind.take(rows), end))
        return drawn

    def _parts(self, step: int) -> Iterator[_Part]:
        """Yield this process's samples, rolled out, `micro` at a time."""
        drawn = self._drawn(step)
        total = sum(len(draws.anchor) for draws, *_ in drawn)
        for draws, taken, end in drawn:
            here, samples = draws.to(self.device), len(draws.anchor)
            text, empty = (
                {name: tensor.to(self.device) for name, tensor in condition.items()}
                for condition in (taken, taken | self.kinds[0].empty(samples))
            )
            path = roll_out(self._student, here, text, self.spec.terms.target == "full-trajectory")
            yield _Part(here, text, empty, path, None if end is None else end.to(self.device), samples / total)

    def _size_of_estimates(self, parts: list[_Part], step: int) -> float:
        """Return the root mean square of the clean estimates. Raises TrainingError above the limit."""
        mean = self._mean(torch.stack([p.share * p.path.estimate.square().mean() for p in parts]).sum())
        size = mean.sqrt().item()
        if not size <= self.spec.limit:
            raise TrainingError(
                f"the student has diverged at iteration {step}: its clean estimates have a root mean square of "
                f"{size:.3g} (the limit is {self.spec.limit:g}). The last saved state is kept; lower "
                "loop.learning_rate or cdm.terms.guidance, then start again with another --out."
            )
        return size

    def _check_conditions(self) -> None:
        family, config = self.networks.family, self.networks.config
        for kind in self.kinds:
            wanted = family.text(config, 1) | family.beside(config, kind.shape or self.shape)
            found = {name: tuple(tensor.shape[1:]) for name, tensor in kind.take([0]).items()}
            fixed, had = ({name: _fixed(name, shape) for name, shape in of.items()} for of in (wanted, found))
            if had != fixed:
                raise TrainingError(
                    f"the conditions in {kind.folder} have shapes {found}, but the transformer takes {wanted} (any "
                    "number of tokens and frames fits). Write them with segue encode, by this teacher."
                )

    def _fake_losses(self, parts: list[_Part]) -> Iterator[dict[str, Tensor]]:
        for part in parts:
            yield {"loss": part.share * fake_term(self._fake, part.draws, part.path, part.text)}

    def _student_losses(self, parts: list[_Part]) -> Iterator[dict[str, Tensor]]:
        networks = self._student, self._real, self._fake
        for part in parts:
            for terms in student_terms(
                *networks, part.draws, part.path, part.text, part.empty, self.spec.terms, part.end
            ):
                yield {name: part.share * term for name, term in terms.items()}

    def _update(self, role: str, losses: Iterator[dict[str, Tensor]], rate: float) -> dict[str, float]:
        """Propagate each loss back at once, so that memory holds one graph. Then step."""
        optimiser, parameters = self.optimisers[role], list(self.parameters[role].values())
        optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for named in losses:
            self.networks.use(role)
            torch.stack(list(named.values())).sum().backward()
            for name, loss in named.items():
                sums[name] = loss.detach() + sums.get(name, 0.0)
        self._average_gradients(parameters)
        norm: Any = nn.utils.clip_grad_norm_(parameters, self.loop.clip)
        norm = norm.full_tensor() if self.spec.shard else norm
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient of the {role} network is {norm.item()}. The last saved state is kept; lower "
                "loop.learning_rate, then start again with another --out."
            )
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        means = {name: self._mean(value).item() for name, value in sums.items()}
        return {**means, f"gradient norm, {role}": norm.item()}

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average over processes, once for all parts. Sharded networks do it in the backward pass."""
        if self.place.world > 1 and not self.spec.shard:
            for p in parameters:
                if p.grad is not None:
                    dist.all_reduce(p.grad)
                    p.grad /= self.place.world

    def _mean(self, value: Tensor) -> Tensor:
        if self.place.world > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.place.world
        return value


@dataclass(frozen=True)
class _Part:
    """Some samples of an iteration. `share` is their fraction of this process's samples."""

    draws: Draws
    text: Condition
    empty: Condition
    path: RollOut
    end: Tensor | None  # the guided teacher's results for the roll-outs' noise, from the pairs
    share: float


def _fixed(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes that are equal in all samples, without the numbers of tokens and frames."""
    if name in ("states", "positions"):
        return shape[1:]
    return (shape[0], *shape[2:]) if len(shape) == 4 else shape
