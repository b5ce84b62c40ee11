"""How far two arrays or pictures are from one another."""

from __future__ import annotations

import numpy as np


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """Return |found - expected| / |expected| in float64; 0 where both are zeros."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    if not difference.any():
        return 0.0
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of uint8 pictures in dB; infinite for equal ones."""
    error = np.mean((found.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
