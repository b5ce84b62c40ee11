"""Flow-matching Euler with a static shift, to the bit the noise levels and steps of diffusers 0.42.1.

The noise levels follow `diffusers.FlowMatchEulerDiscreteScheduler` (Esser et al. 2024, "Scaling Rectified Flow
Transformers for High-Resolution Image Synthesis", section 5.3.2 for the shift). Everything here is a plain function of
numpy arrays, so training calls the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..errors import UsageError

Levels = TypeVar("Levels")  # a numpy array, a torch tensor or a float


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one run.

    `sigmas` float32 [steps + 1] in [0, 1], from noise to picture, the last one 0; `timesteps` float32 [steps], the
    network's time input, sigma times `train_timesteps`.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray

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


def euler_step(latents: np.ndarray, velocity: np.ndarray, sigma: np.float32, sigma_next: np.float32) -> np.ndarray:
    """Return the latents at `sigma_next`, float32, from those at `sigma` and the velocity d latents / d sigma there."""
    return latents.astype(np.float32) + (sigma_next - sigma) * velocity.astype(np.float32)


def sample_euler(
    denoise: Callable[[np.ndarray, np.float32], np.ndarray],
    latents: np.ndarray,
    schedule: Schedule,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Carry `latents` (any shape, at the schedule's first noise level) down to sigma 0; returns float32.

    `denoise(latents, timestep)` gives the velocity, of the same shape. `callback(step, latents)` is called after each
    step with the number of steps done; whatever it raises ends the run.
    """
    latents = latents.astype(np.float32)
    for i, timestep in enumerate(schedule.timesteps):
        latents = euler_step(latents, denoise(latents, timestep), schedule.sigmas[i], schedule.sigmas[i + 1])
        if callback is not None:
            callback(i + 1, latents)
    return latents


def guide(unconditional: np.ndarray, conditional: np.ndarray, guidance: float) -> np.ndarray:
    """Return the velocity of classifier-free guidance, float32 (Ho & Salimans 2022, in diffusers' form)."""
    unconditional = unconditional.astype(np.float32)
    return unconditional + np.float32(guidance) * (conditional.astype(np.float32) - unconditional)


def _close(sigmas: np.ndarray, train_timesteps: int) -> Schedule:
    timesteps = sigmas * np.float32(train_timesteps)
    return Schedule(np.append(sigmas, np.float32(0)), timesteps)
