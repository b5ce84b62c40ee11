"""Measure differences of arrays and pictures. Parity reports use polygraphy's comparison functions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ...errors import MissingDependencyError


@dataclass(frozen=True)
class Difference:
    """The worst output's relative L2, |expected - found| / |expected|, and the largest absolute difference.

    NaN, infinity and arrays of other shapes become the largest float, because JSON and `max` cannot handle them.
    """

    relative_l2: float
    maximum: float


def difference(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Difference:
    """Return the difference between the arrays `found` and `expected` of the same names, compared as float32.

    Relative L2 comes from polygraphy's signal-to-noise ratio, the maximum from its `SimpleCompareFunc`. Raises
    MissingDependencyError if polygraphy is absent.
    """
    comparator, logger = _polygraphy()
    pair = ("expected", "found")
    runs = comparator.RunResults()
    for name, outputs in zip(pair, (expected, found), strict=True):
        values = {output: np.asarray(value).astype(np.float32) for output, value in outputs.items()}
        runs.append((name, [comparator.IterationResult(values, runner_name=name)]))
    functions = [comparator.SnrCompareFunc(), comparator.SimpleCompareFunc(check_error_stat="max")]
    with logger.verbosity(logger.CRITICAL), np.errstate(all="ignore"):
        ratios, maxima = comparator.Comparator.compare_accuracy(runs, compare_func=functions)
    # If shapes differ, polygraphy gives False in place of a measurement. A NaN must not pass as the smaller number.
    return Difference(
        max(_finite(10 ** (-getattr(r, "snr", -np.inf) / 20)) for r in ratios[pair][0].values()),
        max(_finite(getattr(r, "max_absdiff", np.inf)) for r in maxima[pair][0].values()),
    )


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """Return |found - expected| / |expected| in float64; 0 if both are zeros."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    if not difference.any():
        return 0.0
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of uint8 pictures in dB; infinity for equal ones."""
    error = np.mean((found.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@cache
def _polygraphy() -> tuple[Any, Any]:
    try:
        from polygraphy import comparator
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise MissingDependencyError(
            "comparing outputs needs polygraphy, which is not installed.", "Run: pip install polygraphy"
        ) from None
    return comparator, G_LOGGER


def _finite(value: float) -> float:
    return float(value) if np.isfinite(value) else sys.float_info.max
