"""Bytes and operations as polynomials of a graph's free dimensions: what `export` fits and the planner reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of dimensions. No coefficient is negative, so the sum grows with every dimension.

    `error` is the largest share by which it was below the true value at the fitted points.
    """

    terms: tuple[tuple[str, ...], ...]
    coefficients: tuple[float, ...]
    error: float

    def at(self, sizes: Mapping[str, int]) -> float:
        """Return the value at `sizes`, raised by the error, so that it is at least the true value."""
        products = (math.prod(sizes[name] for name in term) for term in self.terms)
        return sum(c * p for c, p in zip(self.coefficients, products, strict=True)) / (1 - self.error)


@dataclass(frozen=True)
class CostModel:
    """The cost of one call of a component at the sizes of its dimensions, without weights.

    `flops` are operations; a multiplication with its addition counts as two. `activations` are the bytes that live at
    one time, with inputs and outputs; attention is one kernel, and floats have the graph's types. `widened` is the same
    on a processor: ONNX Runtime computes fp16 in fp32 there, and holds the products of queries and keys.
    """

    flops: Polynomial
    activations: Polynomial
    widened: Polynomial


@dataclass(frozen=True)
class Footprint:
    """Bytes that a process holds for a component in ONNX Runtime on a processor, measured at export.

    `loading` is the peak while it is loaded, `loaded` the bytes afterwards, and `working` the additional peak of a
    call. Measured with one thread, without an arena, and with freed memory returned (`engines/heap.py`).
    """

    loading: int
    loaded: int
    working: Polynomial
