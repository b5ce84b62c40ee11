"""The schedule of a request: the noise levels of flow matching with a shift, or a sampler of `samplers.py`.

Flow matching has the same bits as `diffusers.FlowMatchEulerDiscreteScheduler` 0.42.1 with a static shift (Esser et al.
2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 5.3.2).
Everything here is a plain function of numpy arrays, so training calls the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ...errors import UsageError
from ..bundle.families import family_of
from ..bundle.limits import MAX_STEPS
from ..bundle.manifest import Manifest, StepShift
from ..units import whole_number
from .recurrence import Levels, Schedule, Space, estimate, euler_steps, linear_steps
from .samplers import beta_schedule

RENOISED = "flow-match-renoised"  # the sampler that noises each estimate anew
Sigmas = TypeVar("Sigmas")  # a numpy array, a torch tensor or a float


def shift_sigmas(sigmas: Sigmas, shift: float) -> Sigmas:
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
    spec = content.sampler
    count = whole_number("steps", spec.steps if steps is None else steps, 1, MAX_STEPS)
    if spec.noise is not None:
        if sigmas is not None:
            raise UsageError(
                f"sigmas = {sigmas!r} cannot be used: the bundle {content.name!r} was trained on betas, so the number "
                "of steps sets its sigmas. Give only steps."
            )
        fixed = spec.noise if count == len(spec.noise.timesteps) else replace(spec.noise, timesteps=())
        return beta_schedule(spec.kind, count, fixed, spec.train_timesteps)
    found = _flow_schedule(content, count, steps, sigmas, height, width)
    return renoised(found) if spec.kind == RENOISED else found


def _flow_schedule(
    content: Manifest, count: int, steps: int | None, sigmas: Sequence[float] | None, height: int, width: int
) -> Schedule:
    """Return the Euler steps of flow matching: those of `sigmas`, of a student, or of the family's grid."""
    spec, grid = content.sampler, family_of(content).grid
    shift = spec.shift
    unit = content.latents.factor * content.latents.patch
    tokens = (height // unit) * (width // unit)
    if spec.token_shift is not None:
        shift = token_shift(tokens, spec.token_shift.tokens, spec.token_shift.mu)
    elif spec.step_shift is not None:
        steps_drawn = count if sigmas is None else custom_schedule(sigmas, 1.0, spec.train_timesteps).steps
        shift = step_shift(tokens, steps_drawn, spec.step_shift)
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


def first_step(schedule: Schedule, strength: float) -> int:
    """Return the first step that runs on a given picture; `strength` in (0, 1] is the share of the steps.

    Flow matching rounds the number of left-out steps down, and other samplers the number of steps, as diffusers does.
    Raises UsageError if no step is left.
    """
    steps = schedule.steps
    if schedule.space is Space.FLOW:
        return int(max(steps - min(steps * strength, steps), 0))
    run = min(int(steps * strength), steps)
    if run < 1:
        raise UsageError(
            f"a strength of {strength:g} leaves none of {steps} steps. Raise strength to {1 / steps:.2g}, or steps."
        )
    return steps - run


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


def step_shift(tokens: int, steps: int, spec: StepShift) -> float:
    """Return the shift exp(mu) of a picture of `tokens` tokens that is drawn in `steps` steps.

    This is diffusers' `compute_empirical_mu` of FLUX.2 with an exponential time shift.
    """
    few, many = (slope * tokens + offset for slope, offset in zip(spec.slopes, spec.offsets, strict=True))
    first, last = spec.steps
    slope = (many - few) / (last - first)
    mu = many if tokens > spec.most else slope * steps + (many - last * slope)
    return math.exp(min(max(mu, -50.0), 50.0))


def renoised(schedule: Schedule) -> Schedule:
    """Return a flow-matching schedule whose steps noise each estimate of the clean picture anew.

    diffusers' FlowMatchEulerDiscreteScheduler does so with `stochastic_sampling`; FastWan's students are played so.
    """
    wide = schedule.sigmas.astype(np.float64)
    now, then = (Levels(1 - levels, levels) for levels in (wide[:-1], wide[1:]))
    numbers = linear_steps(now, then, estimate(now, "velocity"), np.zeros(schedule.steps), then.noisy)
    return replace(schedule, keep=numbers[0], move=numbers[1], fresh=numbers[2])


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
    return euler_steps(np.append(sigmas, np.float32(0)), timesteps, np.ones_like(timesteps))
