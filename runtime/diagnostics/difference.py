"""How far a graph's outputs are from expected ones, by polygraphy's comparison functions, as parity reports have it."""

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

    The largest float stands for NaN, infinity and arrays of other shapes: JSON and `max` do not have those.
    """

    relative_l2: float
    maximum: float


def difference(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Difference:
    """Return how far the arrays `found` are from those `expected`, of the same names, compared as float32.

    Relative L2 is that of polygraphy's signal-to-noise ratio, the maximum of its `SimpleCompareFunc`. Raises
    MissingDependencyError where polygraphy is absent.
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
    # Where shapes differ polygraphy gives False in place of a measurement; a NaN must not pass as the smaller number.
    return Difference(
        max(_finite(10 ** (-getattr(r, "snr", -np.inf) / 20)) for r in ratios[pair][0].values()),
        max(_finite(getattr(r, "max_absdiff", np.inf)) for r in maxima[pair][0].values()),
    )


@cache
def _polygraphy() -> tuple[Any, Any]:
    try:
        from polygraphy import comparator
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise MissingDependencyError(
            "comparing outputs needs polygraphy, which is not installed. Run: pip install polygraphy"
        ) from None
    return comparator, G_LOGGER


def _finite(value: float) -> float:
    return float(value) if np.isfinite(value) else sys.float_info.max
