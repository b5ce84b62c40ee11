"""One CDM iteration on three velocity networks: roll-out, the student's terms, the fake teacher's loss."""

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
    """The student's loss. Weights of 0, `point` and `target` make the paper's ablations (section 4 of its page)."""

    ca: float = 1.0  # weight of CFG augmentation; a weight of 0 saves its calls
    dm: float = 1.0  # of distribution matching
    cdm: float = 1.0  # of off-trajectory matching
    regression: float = 0.0  # towards the guided teacher's ends (`cdm.pairs`), as in DMD; not in the paper
    guidance: float = 7.0  # alpha of CFG augmentation
    matching: float = 1.0  # guidance of the real teacher in DM and CDM; the paper has none there: 1
    point: str = "velocity"  # how to make the off-trajectory point, one of POINTS
    target: str = "local"  # what the off-trajectory term renoises, one of TARGETS

    def __post_init__(self) -> None:
        """Raise TrainingError for an unknown name, and if no term is left."""
        for name, known in (("point", POINTS), ("target", TARGETS)):
            if getattr(self, name) not in known:
                raise TrainingError(f"[cdm.terms] {name} = {getattr(self, name)!r} must be one of {', '.join(known)}.")
        if not 1 <= self.matching < math.inf:
            raise TrainingError(f"[cdm.terms] matching = {self.matching} must be at least 1. Correct the recipe.")
        weights = self.ca, self.dm, self.cdm, self.regression
        if min(weights) < 0 or not sum(weights) > 0:
            raise TrainingError(
                f"[cdm.terms] ca = {self.ca}, dm = {self.dm}, cdm = {self.cdm}, regression = {self.regression}: "
                "weights must be at least 0, and one above 0. Correct the recipe."
            )

    @property
    def matches(self) -> bool:
        """Whether a term needs the fake teacher."""
        return self.dm + self.cdm > 0


@dataclass(frozen=True)
class RollOut:
    """The student's trajectory at each sample's anchor. Constants (B, …); `level` is (B,)."""

    latents: Tensor
    velocity: Tensor
    level: Tensor
    end: Tensor | None  # at level 0; only with `to_the_end`

    @property
    def estimate(self) -> Tensor:
        """Return the local estimate of the clean latents at the anchor."""
        return clean_estimate(self.latents, self.velocity, self.level)


@torch.no_grad()
def roll_out(student: Velocity, draws: Draws, condition: Condition, to_the_end: bool = False) -> RollOut:
    """Roll the student out from noise by Euler steps, and keep its state at each anchor.

    A sample stops at its own anchor, or a little later (`rows_at`). With `to_the_end` every sample runs to level 0.
    Calls go on to the last anchor of the global batch, because sharded networks need the same number of calls in every
    process.
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
    """Return the sample indices of each call of the roll-out.

    A call takes the samples that have not passed their anchor. Other samples fill it up to a multiple of a quarter of
    the batch. A compiled network therefore sees only four sizes, and never an empty batch.
    """
    order, quarter = draws.anchor.argsort(descending=True), -(-len(draws.anchor) // 4)
    anchors = draws.anchor.tolist()
    waiting = [sum(anchor >= i for anchor in anchors) for i in range(draws.calls)]
    return [order[: max(-(-count // quarter), 1) * quarter] for count in waiting]


@dataclass(frozen=True)
class Pull:
    """One term on B samples: the direction for the student's clean estimates. (B, …); `level` is (B,)."""

    estimate: Tensor  # with gradient, from the student's call at `level`
    direction: Tensor
    reference: Tensor  # its distance to the estimate normalises the direction
    level: Tensor


def student_terms(
    student: Velocity, real: Velocity, fake: Velocity, draws: Draws, path: RollOut, condition: Condition,
    empty: Condition, spec: TermsSpec, end: Tensor | None = None,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Yield the weighted terms of the student's loss by name, for each call with gradient.

    The loss is their sum. Gradient reaches the student through two calls: one at the anchor, which CA, DM and
    regression share, and one at the off-trajectory point. The caller may propagate each back before taking the next.
    `end` (B, …) holds the guided teacher's results for the roll-outs' noise. Without it there is no regression.
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
    """Yield the pulls from which `student_terms` makes its weighted losses."""
    guided = partial(_guided, real, spec.matching, condition, empty)
    if spec.ca or spec.dm or spec.regression:
        estimate, pulls = _estimate(student, path.latents, path.level, condition), {}
        if spec.ca:
            tied, free = _both(real, estimate.detach(), draws.ca, condition, empty)
            pulls["ca"] = Pull(estimate, spec.guidance * (tied - free), tied, path.level)
        if spec.dm:
            pulls["dm"] = Pull(estimate, *_match(guided, fake, estimate, draws.dm, condition), path.level)
        if spec.regression and end is not None:
            # Yin et al. 2024, DMD, equation 9, as squares in latents; normalised like the other terms.
            pulls["regression"] = Pull(estimate, end - estimate.detach(), end, path.level)
        yield pulls
    if spec.cdm:
        latents, level = off_point(path, draws, spec.point)
        estimate = _estimate(student, latents, level, condition)
        base = estimate if spec.target == "local" else path.end
        if base is None:
            raise TrainingError(
                'target = "full-trajectory" needs a roll-out to the end. Call roll_out with to_the_end.'
            )
        yield {"cdm": Pull(estimate, *_match(guided, fake, base, draws.cdm, condition), level)}


def off_point(path: RollOut, draws: Draws, point: str) -> tuple[Tensor, Tensor]:
    """Return the off-trajectory point, as constants: latents and level (B,) for the student's call."""
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
    """Return the direction from the fake to the real teacher's estimate, and the real estimate."""
    noisy = renoise(base, at.noise, at.level)
    wanted = real(noisy, at.level)
    return wanted - _estimate(fake, noisy, at.level, condition), wanted
