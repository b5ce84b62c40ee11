"""Euler steps and their noise levels: flow matching with a shift, and the variance-exploding levels of SDXL.

The flow-matching levels and steps are to the bit those of `diffusers.FlowMatchEulerDiscreteScheduler` 0.42.1 with a
static shift (Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section
5.3.2); the others follow `EulerDiscreteScheduler` (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models", algorithm 1 without churn). Everything here is a plain function of numpy arrays, so training calls
the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...errors import UsageError

Levels = TypeVar("Levels")  # a numpy array, a torch tensor or a float


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one run.

    `sigmas` float32 [steps + 1], from noise to picture, the last one 0; `timesteps` float32 [steps], the network's time
    input. Of flow matching the levels are in [0, 1] and the timesteps those times `train_timesteps`. Where noise is
    added to the picture (`exploding`), the network sees latents over sqrt(sigma^2 + 1), and the initial noise is
    multiplied by `scale`.
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
    """Return the noise levels in [0, 1] moved towards noise by `shift` (1 leaves them; SD3 uses 3).

    Works on numpy arrays and torch tensors alike and keeps their dtype.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)  # type: ignore[operator, return-value]


def default_schedule(steps: int, shift: float, train_timesteps: int) -> Schedule:
    """Return the grid of `steps` steps that diffusers makes when no sigmas are given.

    It is shifted twice: the ends of the training grid are shifted in float32, then the linear grid between them is
    shifted again in float64. Raises UsageError for fewer than one step.
    """
    if steps < 1:
        raise UsageError(f"steps = {steps} is below 1. Ask for 1 step or more.")
    ends = np.array([train_timesteps, 1], np.float32) / np.float32(train_timesteps)
    first, last = (float(level) for level in shift_sigmas(ends, shift))
    grid = np.linspace(first * train_timesteps, last * train_timesteps, steps) / train_timesteps
    return _close(shift_sigmas(grid, shift).astype(np.float32), train_timesteps)


def custom_schedule(sigmas: Sequence[float], shift: float, train_timesteps: int) -> Schedule:
    """Return the schedule of the given noise levels, which are cast to float32 and then shifted, as diffusers does.

    Raises UsageError unless they fall strictly and lie in (0, 1].
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
            f"sigmas = {sigmas!r} do not fall strictly within (0, 1]. Give them from noise to picture, without the "
            "final 0, such as 1.0, 0.75, 0.5, 0.25."
        )
    return _close(shift_sigmas(levels.astype(np.float32), shift), train_timesteps)


def token_shift(tokens: int, range_of_tokens: tuple[int, int], range_of_mu: tuple[float, float]) -> float:
    """Return the shift exp(mu) of a picture of `tokens` tokens, mu on the line through the two points given.

    Esser et al. 2024, section 5.3.2, as diffusers' `calculate_shift` and exponential time shift have it.
    """
    (low, high), (least, most) = range_of_tokens, range_of_mu
    slope = (most - least) / (high - low)
    return math.exp(min(max(tokens * slope + (least - slope * low), -50.0), 50.0))


def exploding_schedule(
    steps: int, betas: tuple[float, float], train_timesteps: int, spacing: str, offset: int
) -> Schedule:
    """Return the levels sqrt((1 - a) / a) of a network that was trained to predict noise, for `steps` steps.

    `betas` are the ends of the scaled-linear schedule whose cumulated products are a; `spacing` is "trailing",
    "leading" (moved by `offset`) or "linspace" (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are
    Flawed", table 2). Raises UsageError for steps that are none of 1 to `train_timesteps`.
    """
    if not 1 <= steps <= train_timesteps:
        raise UsageError(f"steps = {steps} is none of 1 to {train_timesteps}. Ask for a number in that range.")
    roots = np.linspace(betas[0] ** 0.5, betas[1] ** 0.5, train_timesteps)
    kept = np.cumprod(1 - roots**2)
    levels = np.sqrt((1 - kept) / kept)
    if spacing == "trailing":
        # not more than `steps`: for some, such as 61, diffusers makes one more of a rounding error
        timesteps = np.arange(train_timesteps, 0, -train_timesteps / steps)[:steps].round() - 1
    elif spacing == "leading":
        timesteps = (np.arange(steps) * (train_timesteps // steps))[::-1] + float(offset)
    else:
        timesteps = np.linspace(0, train_timesteps - 1, steps)[::-1]
    sigmas = np.append(np.interp(timesteps, np.arange(train_timesteps), levels), 0).astype(np.float32)
    scale = math.sqrt(float(sigmas[0]) ** 2 + 1) if spacing == "leading" else float(sigmas[0])
    return Schedule(sigmas, timesteps.astype(np.float32), True, scale)


def euler_step(latents: np.ndarray, velocity: np.ndarray, sigma: np.float32, sigma_next: np.float32) -> np.ndarray:
    """Return the latents at `sigma_next`, float32, from those at `sigma` and the velocity d latents / d sigma there."""
    return latents.astype(np.float32) + (sigma_next - sigma) * velocity.astype(np.float32)


def sample_euler(
    denoise: Callable[[np.ndarray, np.float32], np.ndarray],
    latents: np.ndarray,
    schedule: Schedule,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Carry `latents` (any shape, noise of deviation 1 at the schedule's first level) down to sigma 0; returns float32.

    `denoise(latents, timestep)` gives d latents / d sigma, of the same shape: the velocity, or the noise predicted.
    `callback(step, latents)` is called after each step with the number of steps done; whatever it raises ends the run.
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
    """Return the velocity of classifier-free guidance, float32 (Ho & Salimans 2022, in diffusers' form)."""
    unconditional = unconditional.astype(np.float32)
    return unconditional + np.float32(guidance) * (conditional.astype(np.float32) - unconditional)


def guide_renormalised(unconditional: np.ndarray, conditional: np.ndarray, guidance: float, patch: int) -> np.ndarray:
    """Return guided velocities whose tokens are no longer than the conditional ones', as LongCat-Image's pipeline.

    The arrays are [n, channels, height, width]; a token is a `patch` x `patch` square of all channels.
    """
    guided = guide(unconditional, conditional, guidance)
    scale = _token_norms(conditional.astype(np.float32), patch) / (_token_norms(guided, patch) + np.float32(1e-8))
    return guided * np.minimum(scale, 1).repeat(patch, -2).repeat(patch, -1)


def _token_norms(latents: np.ndarray, patch: int) -> np.ndarray:
    count, channels, height, width = latents.shape
    tokens = latents.reshape(count, channels, height // patch, patch, width // patch, patch)
    return np.sqrt((tokens**2).sum((1, 3, 5)))[:, None]


def _close(sigmas: np.ndarray, train_timesteps: int) -> Schedule:
    timesteps = sigmas * np.float32(train_timesteps)
    return Schedule(np.append(sigmas, np.float32(0)), timesteps)
