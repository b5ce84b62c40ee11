"""One CDM iteration on three velocity networks: roll-out, the student's three terms, the fake teacher's loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import TrainingError
from .draws import Draws, Renoise
from .families import Condition
from .losses import clean_estimate, flow_loss, move, renoise, surrogate

Velocity = Callable[[Tensor, Tensor, Condition], Tensor]
"""velocity(latents (B, …), level (B,), condition of the B samples): eps - x0, of the latents' shape."""

POINTS = ("velocity", "gaussian", "on-trajectory")
TARGETS = ("local", "full-trajectory")


@dataclass(frozen=True)
class TermsSpec:
    """The student's loss. Weights of 0, `point` and `target` are the paper's ablations (section 4 of its page)."""

    ca: float = 1.0  # weight of CFG augmentation; a term of weight 0 costs nothing
    dm: float = 1.0  # of distribution matching
    cdm: float = 1.0  # of off-trajectory matching
    regression: float = 0.0  # towards the guided teacher's ends (`cdm.pairs`), as DMD's; not the paper's
    guidance: float = 7.0  # alpha of CFG augmentation
    matching: float = 1.0  # guidance of the real teacher in DM and CDM; 1 is the paper's, which has none there
    point: str = "velocity"  # how the off-trajectory point comes about, one of POINTS
    target: str = "local"  # what the off-trajectory term renoises, one of TARGETS

    def __post_init__(self) -> None:
        """Raise TrainingError for a name that is unknown, and where no term is left."""
        for name, known in (("point", POINTS), ("target", TARGETS)):
            if getattr(self, name) not in known:
                raise TrainingError(f"{name} = {getattr(self, name)!r} is none of {', '.join(known)}. Mend the recipe.")
        if not 1 <= self.matching < math.inf:
            raise TrainingError(f"matching = {self.matching} must be 1 or more. Mend the recipe.")
        weights = self.ca, self.dm, self.cdm, self.regression
        if min(weights) < 0 or not sum(weights) > 0:
            raise TrainingError(
                f"ca = {self.ca}, dm = {self.dm}, cdm = {self.cdm}, regression = {self.regression}: no weight may "
                "be below 0, one must be above. Mend the recipe."
            )

    @property
    def matches(self) -> bool:
        """Whether a term needs the fake teacher."""
        return self.dm + self.cdm > 0


@dataclass(frozen=True)
class RollOut:
    """The student's own trajectory at each sample's anchor; constants, (B, …) but for `level` (B,)."""

    latents: Tensor
    velocity: Tensor
    level: Tensor
    end: Tensor | None  # at level 0; only where it was asked for

    @property
    def estimate(self) -> Tensor:
        """Return the local estimate of the clean latents at the anchor."""
        return clean_estimate(self.latents, self.velocity, self.level)


@torch.no_grad()
def roll_out(student: Velocity, draws: Draws, condition: Condition, to_the_end: bool = False) -> RollOut:
    """Carry the student from noise along its schedule by Euler steps, and keep what it had at each anchor.

    A sample is called up to its own anchor, or a little further (`rows_at`), unless the end is asked for, which changes
    nothing else. Calls go on to the last anchor of the global batch: so every process makes the same number of them, as
    sharded networks need it.
    """
    latents, velocity = draws.start.clone(), torch.zeros_like(draws.start)
    kept_latents, kept_velocity = torch.zeros_like(latents), torch.zeros_like(latents)
    everyone = torch.arange(len(latents), device=latents.device)
    for i, rows in enumerate([everyone] * (draws.sigmas.shape[1] - 1) if to_the_end else rows_at(draws)):
        text = {name: tensor[rows] for name, tensor in condition.items()}
        velocity[rows] = student(latents[rows], draws.sigmas[rows, i], text).float()
        here = draws.anchor == i
        kept_latents[here], kept_velocity[here] = latents[here], velocity[here]
        latents[rows] = move(latents[rows], velocity[rows], draws.sigmas[rows, i], draws.sigmas[rows, i + 1])
    return RollOut(kept_latents, kept_velocity, draws.anchor_sigma, latents if to_the_end else None)


def rows_at(draws: Draws) -> list[Tensor]:
    """Return, for each call of the roll-out, the indices of the samples that it takes.

    Those whose anchor is not behind yet, filled up with others to a multiple of a quarter of the batch: so a network
    that is compiled for each size meets four sizes, and never none.
    """
    order, quarter = draws.anchor.argsort(descending=True), -(-len(draws.anchor) // 4)
    anchors = draws.anchor.tolist()
    waiting = [sum(anchor >= i for anchor in anchors) for i in range(draws.calls)]
    return [order[: max(-(-count // quarter), 1) * quarter] for count in waiting]


@dataclass(frozen=True)
class Pull:
    """One term on B samples: where it wants the student's clean estimates to go; (B, …) but for `level` (B,)."""

    estimate: Tensor  # with gradient, of the student's call at `level`
    direction: Tensor
    reference: Tensor  # whose distance to the estimate normalises the direction
    level: Tensor


def student_terms(
    student: Velocity, real: Velocity, fake: Velocity, draws: Draws, path: RollOut, condition: Condition,
    empty: Condition, spec: TermsSpec, end: Tensor | None = None,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Yield the weighted terms of the student's loss by name, for each of its calls with gradient.

    The loss is the sum of all of them. Gradient reaches the student only through the one call at the anchor, which CA,
    DM and regression share, and the one at the off-trajectory point; each may be propagated back before the next one is
    made. `end` (B, …) is where the guided teacher carries the roll-outs' noise; without it there is no regression.
    """
    for pulls in student_pulls(student, real, fake, draws, path, condition, empty, spec, end):
        yield {
            name: getattr(spec, name) * surrogate(pull.estimate, pull.direction, pull.reference)
            for name, pull in pulls.items()
        }


def student_pulls(
    student: Velocity, real: Velocity, fake: Velocity, draws: Draws, path: RollOut, condition: Condition,
    empty: Condition, spec: TermsSpec, end: Tensor | None = None,
) -> Iterator[dict[str, Pull]]:  # fmt: skip
    """Yield what `student_terms` weighs and makes losses of."""
    guided = partial(_guided, real, spec.matching, condition, empty)
    if spec.ca or spec.dm or spec.regression:
        estimate, pulls = _estimate(student, path.latents, path.level, condition), {}
        if spec.ca:
            tied, free = _both(real, estimate.detach(), draws.ca, condition, empty)
            pulls["ca"] = Pull(estimate, spec.guidance * (tied - free), tied, path.level)
        if spec.dm:
            pulls["dm"] = Pull(estimate, *_match(guided, fake, estimate, draws.dm, condition), path.level)
        if spec.regression and end is not None:
            # Yin et al. 2024, DMD, equation 9, by squares in latents; normalised as its neighbours are, to weigh alike.
            pulls["regression"] = Pull(estimate, end - estimate.detach(), end, path.level)
        yield pulls
    if spec.cdm:
        latents, level = off_point(path, draws, spec.point)
        estimate = _estimate(student, latents, level, condition)
        base = estimate if spec.target == "local" else path.end
        if base is None:
            raise TrainingError('target = "full-trajectory" needs a roll-out to the end. Roll out with to_the_end.')
        yield {"cdm": Pull(estimate, *_match(guided, fake, base, draws.cdm, condition), level)}


def off_point(path: RollOut, draws: Draws, point: str) -> tuple[Tensor, Tensor]:
    """Return the latents and the level (B,) at which the off-trajectory term calls the student; constants."""
    if point == "velocity":
        return move(path.latents, path.velocity, path.level, draws.off), draws.off
    if point == "gaussian":
        return renoise(path.estimate, draws.off_noise, draws.off), draws.off
    return path.latents, path.level


def fake_term(fake: Velocity, draws: Draws, path: RollOut, condition: Condition) -> Tensor:
    """Return the fake teacher's flow-matching loss on the student's local estimates."""
    clean = path.estimate
    velocity = fake(renoise(clean, draws.fake.noise, draws.fake.level), draws.fake.level, condition)
    return flow_loss(velocity, clean, draws.fake.noise)


def _estimate(network: Velocity, latents: Tensor, level: Tensor, condition: Condition) -> Tensor:
    return clean_estimate(latents, network(latents, level, condition).float(), level)


@torch.no_grad()
def _both(real: Velocity, clean: Tensor, at: Renoise, condition: Condition, empty: Condition) -> tuple[Tensor, Tensor]:
    noisy = renoise(clean, at.noise, at.level)
    return _estimate(real, noisy, at.level, condition), _estimate(real, noisy, at.level, empty)


def _guided(
    real: Velocity, guidance: float, condition: Condition, empty: Condition, noisy: Tensor, level: Tensor
) -> Tensor:
    if guidance == 1:
        return _estimate(real, noisy, level, condition)
    tied, free = (_estimate(real, noisy, level, text) for text in (condition, empty))
    return free + guidance * (tied - free)


@torch.no_grad()
def _match(
    real: Callable[[Tensor, Tensor], Tensor], fake: Velocity, base: Tensor, at: Renoise, condition: Condition
) -> tuple[Tensor, Tensor]:
    """Return the direction from the fake teacher's estimate to the real one's, and the real one's."""
    noisy = renoise(base, at.noise, at.level)
    wanted = real(noisy, at.level)
    return wanted - _estimate(fake, noisy, at.level, condition), wanted
