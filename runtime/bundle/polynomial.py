"""Bytes and operations as polynomials of a graph's free dimensions: what `export` fits and the planner reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of dimensions, each with a coefficient that is not negative, so it grows with every one.

    `error` is how far below the true value it was at worst where it was fitted, as a share of that value.
    """

    terms: tuple[tuple[str, ...], ...]
    coefficients: tuple[float, ...]
    error: float

    def at(self, sizes: Mapping[str, int]) -> float:
        """Return the value at `sizes`, raised by the error, so that it is no less than the true one was."""
        products = (math.prod(sizes[name] for name in term) for term in self.terms)
        return sum(c * p for c, p in zip(self.coefficients, products, strict=True)) / (1 - self.error)


@dataclass(frozen=True)
class CostModel:
    """What one call of a component costs at the sizes of its dimensions, weights left out.

    `flops` are operations, a multiplication and its addition being two. `activations` are bytes that live at one time,
    inputs and outputs included: with attention as one kernel and floats as the graph has them; `widened` is the same on
    a processor, where ONNX Runtime computes fp16 in fp32 and holds the products of queries and keys.
    """

    flops: Polynomial
    activations: Polynomial
    widened: Polynomial


@dataclass(frozen=True)
class Footprint:
    """Bytes that a process holds for a component in ONNX Runtime on a processor, as measured when it was exported.

    `loading` at most while it is loaded, `loaded` from then on, `working` at most beside that in a call: one thread, no
    arena, freed memory given back (`engines/heap.py`).
    """

    loading: int
    loaded: int
    working: Polynomial
