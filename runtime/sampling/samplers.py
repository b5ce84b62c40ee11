"""The samplers of networks that were trained on a table of betas, one row each.

A row gives the timesteps of a number of steps, the levels before and after each step, and how much noise a step keeps.
Sources: diffusers 0.42.1's schedulers of the same names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import UsageError
from ..bundle.manifest import NoisePrediction
from .recurrence import Levels, Schedule, Space, estimate, euler_steps, linear_steps

SIGMA_DATA = 0.5  # of the boundary condition of consistency models (Song et al. 2023, appendix C)


@dataclass(frozen=True)
class Steps:
    """The steps of one run before they become a Schedule: timesteps, and the levels `now` and `then` of each step."""

    timesteps: np.ndarray
    now: Levels
    then: Levels
    scale: float = 1.0


@dataclass(frozen=True)
class Row:
    """One sampler: diffusers' scheduler, and the function that makes its schedule for a number of steps."""

    scheduler: str
    schedule: Callable[[int, NoisePrediction, np.ndarray], Schedule]
    fresh: bool = False  # whether steps add noise


def beta_schedule(kind: str, steps: int, spec: NoisePrediction, train_timesteps: int) -> Schedule:
    """Return the schedule of the sampler `kind` for `steps` steps, or for the timesteps that `spec` fixes.

    Raises UsageError unless `steps` is possible for the sampler.
    """
    if not 1 <= steps <= train_timesteps:
        raise UsageError(f"steps must be between 1 and {train_timesteps}, got {steps}.")
    lowest = steps == 1 and spec.spacing == "linspace"  # begins where the tables differ by 1e-5 of the level
    plain = kind == "euler" and spec.prediction == "epsilon" and not lowest
    table = _exact_table if plain else _torch_table
    return SAMPLERS[kind].schedule(steps, spec, table(*spec.betas, train_timesteps))


def _exact_table(first: float, last: float, count: int) -> np.ndarray:
    """Return the share of the picture in latents after each training timestep, float64; plain Euler keeps its bits."""
    return np.cumprod(1 - np.linspace(first**0.5, last**0.5, count) ** 2)


def _torch_table(first: float, last: float, count: int) -> np.ndarray:
    """Return the same numbers as torch rounds them: float32 throughout, and the product in float64."""
    ends = np.float32(first**0.5), np.float32(last**0.5)
    step, i = np.float64((ends[1] - ends[0]) / np.float32(count - 1)), np.arange(count)
    roots = np.where(i < count // 2, ends[0] + step * i, ends[1] - step * (count - 1 - i)).astype(np.float32)
    alphas = np.float32(1) - roots * roots
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32).astype(np.float64)


def _euler(steps: int, spec: NoisePrediction, kept: np.ndarray) -> Schedule:
    """Return Euler steps, where noise is added to the picture and the network sees latents of norm 1."""
    timesteps, sigmas, scale = _exploding(steps, spec, kept)
    divisor = np.sqrt(sigmas[:-1] ** 2 + 1)
    plain = euler_steps(sigmas, timesteps, divisor, scale, Space.EXPLODING)
    if spec.prediction == "epsilon":
        return plain  # exact: the general formula would round differently
    wide = sigmas.astype(np.float64)
    now, then = _picture_plus_noise(wide)
    keep, move, _ = linear_steps(now, then, estimate(now, spec.prediction), wide[1:], np.zeros(steps))
    return Schedule(sigmas, timesteps, keep, move, divisor, None, scale, space=Space.EXPLODING)


def _ancestral(steps: int, spec: NoisePrediction, kept: np.ndarray) -> Schedule:
    """Return Euler steps that replace a part of the noise by fresh noise (k-diffusion's `euler_ancestral`)."""
    timesteps, sigmas, scale = _exploding(steps, spec, kept)
    above, below = sigmas[:-1] ** 2, sigmas[1:] ** 2
    fresh = np.sqrt(below * (above - below) / above)
    down = np.sqrt(below - fresh**2)  # in float32 as in diffusers: the difference cancels most digits
    now, then = _picture_plus_noise(sigmas.astype(np.float64))
    keep, move, drawn = linear_steps(now, then, estimate(now, spec.prediction), down.astype(np.float64), fresh)
    divisor = np.sqrt(sigmas[:-1] ** 2 + 1)
    return Schedule(sigmas, timesteps, keep, move, divisor, drawn, scale, space=Space.EXPLODING)


def _ddim(steps: int, spec: NoisePrediction, kept: np.ndarray) -> Schedule:
    """Return the steps of DDIM without fresh noise (Song et al. 2021, "Denoising Diffusion Implicit Models")."""
    timesteps = _in_table(_spaced(steps, spec, len(kept)).round(), len(kept))
    before = (timesteps - len(kept) // steps).astype(int)
    last = 1.0 if spec.last == "zero" else kept[0]
    then = _preserving(np.where(before >= 0, kept[np.maximum(before, 0)], last))
    return _preserved(timesteps, kept, then, spec.prediction, then.noisy, np.zeros(steps))


def _lcm(steps: int, spec: NoisePrediction, kept: np.ndarray) -> Schedule:
    """Return the steps of latent consistency models, which noise each estimate of the clean picture anew.

    Luo et al. 2023, "Latent Consistency Models", section 4. The boundary condition scales the timestep by 10.
    """
    timesteps = _of_a_student(steps, spec, len(kept))
    following = np.append(timesteps[1:], 0).astype(int)
    alphas = kept[following]
    alphas[-1] = 1.0
    now, then = _preserving(kept[timesteps.astype(int)]), _preserving(alphas)
    p, q = estimate(now, spec.prediction)
    scaled = timesteps * spec.timestep_scaling
    skip, out = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
    keep, move, fresh = linear_steps(now, then, (out * p + skip, out * q), np.zeros(steps), then.noisy)
    return _with_numbers(timesteps, now, keep, move, fresh)


def _tcd(steps: int, spec: NoisePrediction, kept: np.ndarray) -> Schedule:
    """Return the steps of trajectory consistency distillation: to below the next level, then up to it with fresh noise.

    Zheng et al. 2024, "Trajectory Consistency Distillation", section 4.3, where `eta` is called gamma. The last step
    ends at the first training timestep and adds nothing.
    """
    timesteps = _of_a_student(steps, spec, len(kept))
    following = np.append(timesteps[1:], 0).astype(int)
    lower = kept[np.floor((1 - spec.eta) * following).astype(int)]
    up = kept[following] / lower if spec.eta > 0 else np.ones(steps)
    up[-1] = 1.0
    then = _preserving(up * lower)
    fresh = np.sqrt(1 - up)
    return _preserved(timesteps, kept, then, spec.prediction, np.sqrt(up * (1 - lower)), fresh)


def _dpm(steps: int, spec: NoisePrediction, kept: np.ndarray) -> Schedule:
    """Return the steps of DPM-Solver++ 2M with midpoints (Lu et al. 2022, "DPM-Solver++", algorithm 2).

    The first step is of first order. So is the last one, because it ends at the picture.
    """
    timesteps = _in_table(_of_a_solver(steps, spec, len(kept)), len(kept))
    table = np.sqrt((1 - kept) / kept)
    sigmas = np.append(np.interp(timesteps, np.arange(len(kept)), table), 0).astype(np.float32)
    now = _preserving(1 / (1 + sigmas[:-1].astype(np.float64) ** 2))
    then = _preserving(1 / (1 + sigmas[1:].astype(np.float64) ** 2))
    p, q = estimate(now, spec.prediction)
    with np.errstate(divide="ignore"):
        h = np.log(then.clean / now.clean) + np.log(now.noisy / then.noisy)
    whole = -then.clean * np.expm1(-h)  # weight of the clean picture
    half = np.zeros(steps)  # of which this part extrapolates from the step before
    half[1:-1] = whole[1:-1] / (2 * h[:-2] / h[1:-1])
    weight = whole + half
    keep, move = then.noisy / now.noisy + weight * p, weight * q
    past = (-half, p, q)
    return Schedule(
        sigmas, timesteps.astype(np.float32), keep.astype(np.float32), move.astype(np.float32),
        np.ones(steps, np.float32), past=tuple(array.astype(np.float32) for array in past),  # type: ignore[arg-type]
        space=Space.PRESERVING,
    )  # fmt: skip


SAMPLERS = {
    "euler": Row("EulerDiscreteScheduler", _euler),
    "euler-ancestral": Row("EulerAncestralDiscreteScheduler", _ancestral, fresh=True),
    "ddim": Row("DDIMScheduler", _ddim),
    "lcm": Row("LCMScheduler", _lcm, fresh=True),
    "tcd": Row("TCDScheduler", _tcd, fresh=True),
    "dpm++2m": Row("DPMSolverMultistepScheduler", _dpm),
}


def _exploding(steps: int, spec: NoisePrediction, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return timesteps, sigmas sqrt((1 - a) / a) with a last 0, and the scale of the initial noise."""
    table = np.sqrt((1 - kept) / kept)
    timesteps = _spaced(steps, spec, len(kept))
    last = 0.0 if spec.last == "zero" else table[0]
    sigmas = np.append(np.interp(timesteps, np.arange(len(kept)), table), last).astype(np.float32)
    scale = math.sqrt(float(sigmas[0]) ** 2 + 1) if spec.spacing == "leading" else float(sigmas[0])
    return timesteps.astype(np.float32), sigmas, scale


def _spaced(steps: int, spec: NoisePrediction, train_timesteps: int) -> np.ndarray:
    """Return the timesteps of a spacing (Lin et al. 2023, "Common Diffusion Noise Schedules …", table 2)."""
    if spec.timesteps:
        return np.array(spec.timesteps, np.float64)
    if spec.spacing == "trailing":
        # Cut to `steps`: rounding gives diffusers one timestep too many for some numbers, such as 61
        return np.arange(train_timesteps, 0, -train_timesteps / steps)[:steps].round() - 1
    if spec.spacing == "leading":
        return (np.arange(steps) * (train_timesteps // steps))[::-1] + float(spec.offset)
    return np.linspace(0, train_timesteps - 1, steps)[::-1]


def _of_a_student(steps: int, spec: NoisePrediction, train_timesteps: int) -> np.ndarray:
    """Return `steps` of the timesteps that a consistency model was distilled at."""
    if spec.timesteps:
        return np.array(spec.timesteps, np.float64)
    if steps > spec.original_steps:
        raise UsageError(
            f"steps must be between 1 and {spec.original_steps}, because the model was distilled at that many "
            f"timesteps, got {steps}."
        )
    trained = (np.arange(1, spec.original_steps + 1) * (train_timesteps // spec.original_steps) - 1)[::-1]
    return trained[np.floor(np.linspace(0, len(trained), steps, endpoint=False)).astype(int)].astype(np.float64)


def _of_a_solver(steps: int, spec: NoisePrediction, train_timesteps: int) -> np.ndarray:
    """Return the timesteps of DPM-Solver++, whose grids leave out their end."""
    if spec.timesteps:
        return np.array(spec.timesteps, np.float64)
    if spec.spacing == "trailing":
        return np.arange(train_timesteps, 0, -train_timesteps / steps)[:steps].round() - 1
    if spec.spacing == "leading":
        return (np.arange(steps + 1) * (train_timesteps // (steps + 1)))[::-1][:-1] + float(spec.offset)
    return np.linspace(0, train_timesteps - 1, steps + 1).round()[::-1][:-1]


def _in_table(timesteps: np.ndarray, train_timesteps: int) -> np.ndarray:
    """Return the timesteps of a sampler that needs them distinct and in the table, which a full grid is not."""
    if timesteps[0] >= train_timesteps or (np.diff(timesteps) >= 0).any():
        raise UsageError(
            f"steps = {len(timesteps)} are more than the sampler has timesteps for, of {train_timesteps} in training. "
            "Choose fewer."
        )
    return timesteps


def _picture_plus_noise(sigmas: np.ndarray) -> tuple[Levels, Levels]:
    ones = np.ones(len(sigmas) - 1)
    return Levels(ones, sigmas[:-1]), Levels(ones, sigmas[1:])


def _preserving(alphas: np.ndarray) -> Levels:
    """Return the levels of latents whose variance stays 1; `alphas` are the shares of the picture in it."""
    return Levels(np.sqrt(alphas), np.sqrt(1 - alphas))


def _preserved(
    timesteps: np.ndarray, kept: np.ndarray, then: Levels, prediction: str, noise: np.ndarray, fresh: np.ndarray
) -> Schedule:
    now = _preserving(kept[timesteps.astype(int)])
    return _with_numbers(timesteps, now, *linear_steps(now, then, estimate(now, prediction), noise, fresh))


def _with_numbers(
    timesteps: np.ndarray, now: Levels, keep: np.ndarray, move: np.ndarray, fresh: np.ndarray | None
) -> Schedule:
    sigmas = np.append(now.noisy / now.clean, 0).astype(np.float32)
    ones = np.ones(len(keep), np.float32)
    return Schedule(sigmas, timesteps.astype(np.float32), keep, move, ones, fresh, space=Space.PRESERVING)
