"""The formulas of CDM on noise levels t in [0, 1]: x_t = (1 - t) x0 + t eps, velocity eps - x0.

Every function is pure, and takes and returns float32. Levels are (B,), latents (B, …).
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 0.1  # of the normaliser, for latents of about unit variance
LOWEST, HIGHEST = 0.02, 0.98  # range of every renoise level


def spread(level: Tensor, like: Tensor) -> Tensor:
    """Return `level` (B,) with trailing axes, so that it multiplies `like` (B, …)."""
    return level.view(-1, *(1,) * (like.ndim - 1))


def move(latents: Tensor, velocity: Tensor, level: Tensor, target: Tensor) -> Tensor:
    """Move the latents from `level` to `target` along a constant velocity, towards noise or picture.

    The Euler roll-out and the off-trajectory point of CDM use it: x' = x_t + (t' - t) v.
    """
    return latents + spread(target - level, latents) * velocity


def clean_estimate(latents: Tensor, velocity: Tensor, level: Tensor) -> Tensor:
    """Return D(x_t, t) = x_t - t v, the local estimate of the clean latents."""
    return move(latents, velocity, level, torch.zeros_like(level))


def renoise(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Return (1 - t) x0 + t eps at `level`."""
    return torch.lerp(clean, noise, spread(level, clean))


def clamp_level(level: Tensor) -> Tensor:
    """Return `level` within [0.02, 0.98]."""
    return level.clamp(LOWEST, HIGHEST)


def surrogate(estimate: Tensor, direction: Tensor, reference: Tensor) -> Tensor:
    """Return the loss whose gradient moves `estimate` X along `direction`: mean of (X - sg(X + w direction))^2.

    w = 1 / max(mean |reference - X|, 0.1) for each sample; the gradient reaches only X: -2 w direction / numel(X).
    NaN entries of w direction count as 0. The value does not measure convergence.
    """
    with torch.no_grad():
        gap = (reference.float() - estimate.float()).abs().flatten(1).mean(1)
        push = torch.nan_to_num(direction.float() * spread(1 / gap.clamp_min(FLOOR), direction), nan=0.0)
        target = estimate.float() + push
    return (estimate.float() - target).square().mean()


def flow_loss(velocity: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Return the flow-matching loss of the fake teacher: mean of (v - (eps - x0))^2."""
    return (velocity.float() - (noise - clean).float()).square().mean()


def ema_decay(updates: int, highest: float = 0.999) -> float:
    """Return the decay of the student's average after `updates` updates: min((1 + k) / (10 + k), highest)."""
    return min((1 + updates) / (10 + updates), highest)
