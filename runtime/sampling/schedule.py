"""Euler steps and their noise levels: flow matching with a shift, and the variance-exploding levels of SDXL.

Flow matching has the same bits as `diffusers.FlowMatchEulerDiscreteScheduler` 0.42.1 with a static shift (Esser et al.
2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 5.3.2). The other levels follow
`EulerDiscreteScheduler` (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
algorithm 1 without churn). Everything here is a plain function of numpy arrays, so training calls the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...errors import UsageError
from ..bundle.families import family_of
from ..bundle.limits import MAX_STEPS
from ..bundle.manifest import Manifest
from ..units import whole_number

Levels = TypeVar("Levels")  # a numpy array, a torch tensor or a float


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one run.

    `sigmas` is float32 [steps + 1], from noise to picture, and ends with 0. `timesteps` is float32 [steps], the
    network's time input. In flow matching sigmas lie in [0, 1], and a timestep is its sigma times `train_timesteps`.
    With `exploding` noise is added to the picture. The network then sees latents divided by sqrt(sigma^2 + 1), and
    `scale` multiplies the initial noise.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray
    exploding: bool = False
    scale: float = 1.0

    @property
    def steps(self) -> int:
        """Number of Euler steps."""
        return len(self.timesteps)


def shift_sigmas(sigmas: Levels, shift: float) -> Levels:
    """Return sigmas in [0, 1] moved towards noise by `shift` (1 changes nothing; SD3 uses 3).

    Works on numpy arrays and torch tensors and keeps their dtype.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)  # type: ignore[operator, return-value]


def schedule_of(
    content: Manifest, steps: int | None, sigmas: Sequence[float] | None, height: int, width: int
) -> Schedule:
    """Return the schedule of a picture of that size in pixels; None takes the bundle's default.

    The caller's own `sigmas` set the number of steps. Otherwise a student's sigmas apply at its own number of steps,
    and the family's grid at any other. Raises UsageError for values that do not fit.
    """
    spec, grid = content.sampler, family_of(content).grid
    count = whole_number("steps", spec.steps if steps is None else steps, 1, MAX_STEPS)
    if grid == "betas":
        assert spec.noise is not None, "families.check"
        if sigmas is not None:
            raise UsageError(
                f"sigmas = {sigmas!r} cannot be used: the bundle {content.name!r} predicts noise, so the number of "
                "steps sets its sigmas. Give only steps."
            )
        return exploding_schedule(count, spec.noise.betas, spec.train_timesteps, spec.noise.spacing, spec.noise.offset)
    shift = spec.shift
    if spec.token_shift is not None:
        unit = content.latents.factor * content.latents.patch
        tokens = (height // unit) * (width // unit)
        shift = token_shift(tokens, spec.token_shift.tokens, spec.token_shift.mu)
    if sigmas is not None:
        schedule = custom_schedule(sigmas, shift, spec.train_timesteps)
        if steps not in (None, schedule.steps):
            raise UsageError(f"steps = {steps}, but there are {schedule.steps} sigmas. Leave steps out.")
        whole_number("the number of sigmas", schedule.steps, 1, MAX_STEPS)
        return schedule
    if spec.sigmas and steps in (None, spec.steps):
        return custom_schedule(spec.sigmas, shift, spec.train_timesteps)
    if grid == "linear":
        return custom_schedule(np.linspace(1, 1 / count, count), shift, spec.train_timesteps)
    return default_schedule(count, shift, spec.train_timesteps)


def default_schedule(steps: int, shift: float, train_timesteps: int) -> Schedule:
    """Return the grid that diffusers makes for a number of steps without sigmas.

    The shift applies twice: in float32 to the ends of the training grid, then in float64 to the linear grid between
    them. Raises UsageError for fewer than one step.
    """
    if steps < 1:
        raise UsageError(f"steps must be 1 or more, got {steps}.")
    ends = np.array([train_timesteps, 1], np.float32) / np.float32(train_timesteps)
    first, last = (float(level) for level in shift_sigmas(ends, shift))
    grid = np.linspace(first * train_timesteps, last * train_timesteps, steps) / train_timesteps
    return _with_zero(shift_sigmas(grid, shift).astype(np.float32), train_timesteps)


def custom_schedule(sigmas: Sequence[float] | np.ndarray, shift: float, train_timesteps: int) -> Schedule:
    """Return the schedule of the given sigmas, cast to float32 and then shifted, as diffusers does.

    Raises UsageError unless they strictly decrease within (0, 1].
    """
    try:
        levels = np.array(sigmas, np.float64)
    except (TypeError, ValueError):
        levels = np.empty(0)
    if (
        levels.ndim != 1
        or not len(levels)
        or not np.all((levels > 0) & (levels <= 1))
        or not np.all(np.diff(levels) < 0)
    ):
        raise UsageError(
            f"sigmas must strictly decrease within (0, 1], got {sigmas!r}. Leave out the final 0: for example "
            "1.0, 0.75, 0.5, 0.25."
        )
    return _with_zero(shift_sigmas(levels.astype(np.float32), shift), train_timesteps)


def token_shift(tokens: int, range_of_tokens: tuple[int, int], range_of_mu: tuple[float, float]) -> float:
    """Return the shift exp(mu) of a picture of `tokens` tokens; mu lies on the line through the two given points.

    This is diffusers' `calculate_shift` with an exponential time shift (Esser et al. 2024, section 5.3.2).
    """
    (low, high), (least, most) = range_of_tokens, range_of_mu
    slope = (most - least) / (high - low)
    return math.exp(min(max(tokens * slope + (least - slope * low), -50.0), 50.0))


def exploding_schedule(
    steps: int, betas: tuple[float, float], train_timesteps: int, spacing: str, offset: int
) -> Schedule:
    """Return the sigmas sqrt((1 - a) / a) of a network that predicts noise.

    `betas` are the ends of the scaled-linear schedule, and a is the cumulative product of 1 - beta. `spacing` is
    "trailing", "leading" (moved by `offset`) or "linspace" (Lin et al. 2023, "Common Diffusion Noise Schedules and
    Sample Steps are Flawed", table 2). Raises UsageError unless `steps` is in 1 to `train_timesteps`.
    """
    if not 1 <= steps <= train_timesteps:
        raise UsageError(f"steps must be between 1 and {train_timesteps}, got {steps}.")
    roots = np.linspace(betas[0] ** 0.5, betas[1] ** 0.5, train_timesteps)
    kept = np.cumprod(1 - roots**2)
    levels = np.sqrt((1 - kept) / kept)
    if spacing == "trailing":
        # Cut to `steps`: rounding gives diffusers one timestep too many for some numbers, such as 61
        timesteps = np.arange(train_timesteps, 0, -train_timesteps / steps)[:steps].round() - 1
    elif spacing == "leading":
        timesteps = (np.arange(steps) * (train_timesteps // steps))[::-1] + float(offset)
    else:
        timesteps = np.linspace(0, train_timesteps - 1, steps)[::-1]
    sigmas = np.append(np.interp(timesteps, np.arange(train_timesteps), levels), 0).astype(np.float32)
    scale = math.sqrt(float(sigmas[0]) ** 2 + 1) if spacing == "leading" else float(sigmas[0])
    return Schedule(sigmas, timesteps.astype(np.float32), True, scale)


def euler_step(latents: np.ndarray, velocity: np.ndarray, sigma: np.float32, sigma_next: np.float32) -> np.ndarray:
    """Return the latents at `sigma_next`, float32, given latents and velocity (d latents / d sigma) at `sigma`."""
    return latents.astype(np.float32) + (sigma_next - sigma) * velocity.astype(np.float32)


def sample_euler(
    denoise: Callable[[np.ndarray, np.float32], np.ndarray],
    latents: np.ndarray,
    schedule: Schedule,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Denoise `latents` (any shape, noise of standard deviation 1) down to sigma 0; returns float32.

    `denoise(latents, timestep)` returns d latents / d sigma in the same shape: the velocity or the predicted noise.
    `callback(step, latents)` runs after each step with the number of steps done. An exception in it ends the run.
    """
    latents = latents.astype(np.float32) * np.float32(schedule.scale)
    for i, timestep in enumerate(schedule.timesteps):
        sigma = schedule.sigmas[i]
        seen = latents / np.sqrt(sigma**2 + 1) if schedule.exploding else latents
        latents = euler_step(latents, denoise(seen, timestep), sigma, schedule.sigmas[i + 1])
        if callback is not None:
            callback(i + 1, latents)
    return latents


def guide(unconditional: np.ndarray, conditional: np.ndarray, guidance: float) -> np.ndarray:
    """Return the prediction of classifier-free guidance, float32 (Ho & Salimans 2022, in diffusers' form)."""
    unconditional = unconditional.astype(np.float32)
    return unconditional + np.float32(guidance) * (conditional.astype(np.float32) - unconditional)


def guide_renormalised(unconditional: np.ndarray, conditional: np.ndarray, guidance: float, patch: int) -> np.ndarray:
    """Return guided velocities, each token scaled down to at most the norm of the conditional one.

    LongCat-Image's pipeline does the same. The arrays are [n, channels, height, width]. A token is a `patch` x `patch`
    square of all channels.
    """
    guided = guide(unconditional, conditional, guidance)
    scale = _token_norms(conditional.astype(np.float32), patch) / (_token_norms(guided, patch) + np.float32(1e-8))
    return guided * np.minimum(scale, 1).repeat(patch, -2).repeat(patch, -1)


def _token_norms(latents: np.ndarray, patch: int) -> np.ndarray:
    count, channels, height, width = latents.shape
    tokens = latents.reshape(count, channels, height // patch, patch, width // patch, patch)
    return np.sqrt((tokens**2).sum((1, 3, 5)))[:, None]


def _with_zero(sigmas: np.ndarray, train_timesteps: int) -> Schedule:
    timesteps = sigmas * np.float32(train_timesteps)
    return Schedule(np.append(sigmas, np.float32(0)), timesteps)
