"""The recurrence of all samplers: a step is x' = keep x + move e + fresh z, with three numbers a step.

x are the latents, e is what the network gives, and z is fresh noise. At every level x = clean c + noisy n, where c is
the clean picture and n is noise. A network's prediction gives c = p x + q e. Then n = (x - clean c) / noisy, and a step
to the next level is x' = clean' c + kept n + fresh z. A sampler decides only how much noise is kept, and how much is
fresh. DPM-Solver++ 2M adds a fourth number, for the clean picture that the step before estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np


class Space(StrEnum):
    """How latents x of level s are mixed of a picture c and noise n."""

    FLOW = "flow"  # x = (1 - s) c + s n
    EXPLODING = "exploding"  # x = c + s n
    PRESERVING = "preserving"  # x = (c + s n) / sqrt(1 + s^2)


@dataclass(frozen=True)
class Levels:
    """Noise levels, float64 [steps]: latents are `clean` times the picture plus `noisy` times noise."""

    clean: np.ndarray
    noisy: np.ndarray


@dataclass(frozen=True)
class Schedule:
    """The steps of one run; the arrays are float32 [steps].

    - `timesteps`: the network's time input.
    - `keep`, `move`, `fresh`: step i makes keep[i] x + move[i] e + fresh[i] z of the latents x. `fresh` None: no noise.
    - `divisor`: the network sees x / divisor[i].
    - `scale` multiplies the initial noise.
    - `sigmas`: float32 [steps + 1], the levels that a user reads, from noise to picture.
    - `past` None, or (weight, p, q): step i adds weight[i] times the estimate p x + q e of the clean picture that the
      step before made.
    - `space`: what the sigmas mean.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray
    keep: np.ndarray
    move: np.ndarray
    divisor: np.ndarray
    fresh: np.ndarray | None = None
    scale: float = 1.0
    past: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    space: Space = Space.FLOW

    @property
    def steps(self) -> int:
        """Number of steps, which is the number of the network's calls."""
        return len(self.timesteps)

    def mixed(self, step: int, picture: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the latents of a clean `picture` before step `step`, float32; `steps` means after the last one."""
        clean, noisy = self._mix(step)
        return np.float32(clean) * picture + np.float32(noisy) * noise

    def estimate(self, step: int, before: np.ndarray, after: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Return the clean picture that step `step` expected, float32, from the latents before and after that step.

        `noise` is the fresh noise of the step, if it takes any. The two mixtures of picture and noise are two equations
        with two unknowns. So this needs no output of the network, and it holds for the loop on a GPU too.
        """
        (clean, noisy), (then_clean, then_noisy) = self._mix(step), self._mix(step + 1)
        drawn = 0.0 if self.fresh is None else float(self.fresh[step])
        moved = after - np.float32(drawn) * noise if drawn and noise is not None else after
        kept = math.sqrt(max(then_noisy**2 - drawn**2, 0.0))  # fresh and kept noise add up to the level's
        weight = kept * clean - noisy * then_clean
        if not weight:
            return after
        return np.float32(kept / weight) * before - np.float32(noisy / weight) * moved

    def _mix(self, step: int) -> tuple[float, float]:
        """Return the weights of picture and noise in the latents before step `step`."""
        level = float(self.sigmas[step])
        return {
            Space.FLOW: (1 - level, level),
            Space.EXPLODING: (1.0, level),
            Space.PRESERVING: (float(1 / np.hypot(1, level)), float(level / np.hypot(1, level))),
        }[self.space]

    def after(self, step: int) -> Schedule:
        """Return the steps from `step` on, for latents that are at its level already."""
        keep, move, past = self.keep[step:].copy(), self.move[step:].copy(), None
        if self.past is not None:
            weight, p, q = (array[step:].copy() for array in self.past)
            # The first step has no step before it, so it is of first order
            keep[0] += weight[0] * p[0]
            move[0] += weight[0] * q[0]
            weight[0] = 0
            past = weight, p, q
        fresh = None if self.fresh is None else self.fresh[step:]
        return replace(
            self, sigmas=self.sigmas[step:], timesteps=self.timesteps[step:], keep=keep, move=move,
            divisor=self.divisor[step:], fresh=fresh, scale=1.0, past=past,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Moment:
    """A step that has just been done: the latents before and after it, and the source of its fresh noise."""

    schedule: Schedule
    step: int  # from 0
    before: np.ndarray
    after: np.ndarray
    fresh: Callable[[int], np.ndarray]

    def estimate(self) -> np.ndarray:
        """Return the clean picture that the step expected, as latents, float32."""
        drawn = self.schedule.fresh is not None and self.schedule.fresh[self.step]
        noise = self.fresh(self.step) if drawn else None
        return self.schedule.estimate(self.step, self.before, self.after, noise)


def watched(
    callback: Callable[[int, np.ndarray, Moment], None], schedule: Schedule, latents: np.ndarray,
    fresh: Callable[[int], np.ndarray],
) -> Callable[[int, np.ndarray], None]:  # fmt: skip
    """Return the callback of `sample` that also gives `callback` the moment; `latents` are those given to `sample`."""
    last = latents.astype(np.float32) * np.float32(schedule.scale)

    def report(step: int, after: np.ndarray) -> None:
        nonlocal last
        moment, last = Moment(schedule, step - 1, last, after, fresh), after
        callback(step, after, moment)

    return report


def euler_steps(
    sigmas: np.ndarray, timesteps: np.ndarray, divisor: np.ndarray, scale: float = 1.0, space: Space = Space.FLOW
) -> Schedule:
    """Return Euler steps between `sigmas`, float32 [steps + 1], of a network that gives d latents / d sigma."""
    move = sigmas[1:] - sigmas[:-1]
    return Schedule(sigmas, timesteps, np.ones_like(timesteps), move, divisor, None, scale, space=space)


def estimate(levels: Levels, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """Return p and q, float64 [steps], for which the clean picture is p x + q e.

    `prediction` names what e is: "epsilon" (the noise), "sample" (the clean picture), "v_prediction" (Salimans and Ho
    2022, "Progressive Distillation for Fast Sampling of Diffusion Models", section 4) or "velocity" (noise minus
    picture).
    """
    clean, noisy = levels.clean, levels.noisy
    norm = np.sqrt(clean**2 + noisy**2)  # latents of norm 1 are those of the definition of v
    if prediction == "epsilon":
        return 1 / clean, -noisy / clean
    if prediction == "sample":
        return np.zeros_like(clean), np.ones_like(clean)
    if prediction == "v_prediction":
        return clean / norm**2, -noisy / norm
    return 1 / (clean + noisy), -noisy / (clean + noisy)


def linear_steps(
    now: Levels, then: Levels, prediction: tuple[np.ndarray, np.ndarray], kept: np.ndarray, fresh: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return keep, move and fresh, float32 [steps], of steps from `now` to `then` that keep `kept` of the noise."""
    p, q = prediction
    ratio = kept / now.noisy
    keep = then.clean * p + ratio * (1 - now.clean * p)
    move = then.clean * q - ratio * now.clean * q
    drawn = fresh.astype(np.float32) if fresh.any() else None
    return keep.astype(np.float32), move.astype(np.float32), drawn


def sample(
    denoise: Callable[[np.ndarray, np.float32], np.ndarray],
    latents: np.ndarray,
    schedule: Schedule,
    callback: Callable[[int, np.ndarray], None] | None = None,
    noise: Callable[[int], np.ndarray] | None = None,
    blend: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Take all steps of a schedule from `latents` (any shape, noise of standard deviation 1); returns float32.

    `denoise(latents, timestep)` returns what the network predicts, in the same shape. `noise(step)` returns the fresh
    noise of a step, if the schedule takes any. `blend(step, latents)` returns what replaces the latents after a number
    of steps. Then `callback(step, latents)` runs. An exception in it ends the run.
    """
    latents = latents.astype(np.float32) * np.float32(schedule.scale)
    before: np.ndarray | None = None
    for i, timestep in enumerate(schedule.timesteps):
        made = denoise(latents / schedule.divisor[i], timestep).astype(np.float32)
        moved = schedule.keep[i] * latents + schedule.move[i] * made
        if schedule.past is not None:
            weight, p, q = (array[i] for array in schedule.past)
            if weight:
                assert before is not None, "the first step has no step before it"
                moved += weight * before
            before = p * latents + q * made
        if schedule.fresh is not None and schedule.fresh[i]:
            assert noise is not None, "the caller gives noise to a schedule that takes it"
            moved += schedule.fresh[i] * noise(i)
        latents = moved if blend is None else blend(i + 1, moved)
        if callback is not None:
            callback(i + 1, latents)
    return latents
