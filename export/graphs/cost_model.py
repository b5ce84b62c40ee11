"""Fit a component's costs as polynomials of its dimensions, by walking its graph at some sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx

from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.polynomial import CostModel, Polynomial
from ...runtime.bundle.shapes import default_range, dimensions, sized
from .cost import Walk

SPATIAL = ("frames", "height", "width")
TEXTUAL = ("text", "length")
STEP = 16  # of sides between the smallest and the largest: every patch, and every halving of an autoencoder, divides it
EXACT = 1e-9


def cost_model(bundle: Path, content: Manifest, component: str) -> CostModel:
    """Return the polynomials of a component whose graph lies in the directory `bundle`.

    Raises CheckpointError if a shape cannot be inferred.
    """
    spec = content.components[component]
    free = {part for port in spec.inputs for part in port.shape if isinstance(part, str)}
    named = {part.partition("_")[0] for part in free}
    path = bundle / spec.graph
    model, samples = onnx.load(path, load_external_data=False), []
    for dims in trials(content, component, named):
        walk = Walk(model, {part: sized(part, dims, component) for part in free}, path)
        samples.append((dims, walk.cost(None, scores=False), walk.cost(4, scores=True)))
    terms = terms_of(named)

    def fitted(values: Iterable[int]) -> Polynomial:
        return fit([(dims, value) for (dims, *_), value in zip(samples, values, strict=True)], terms)

    return CostModel(
        fitted(plain.flops for _, plain, _ in samples),
        fitted(plain.activations for _, plain, _ in samples),
        fitted(wide.activations for _, _, wide in samples),
    )


def fit(samples: list[tuple[Mapping[str, int], int]], terms: list[tuple[str, ...]]) -> Polynomial:
    """Return the polynomial of `terms`, products of dimensions, whose largest relative error is least."""
    from scipy.optimize import linprog

    matrix = np.array([[np.prod([sizes[n] for n in term], initial=1) for term in terms] for sizes, _ in samples], float)
    values = np.array([max(value, 1) for _, value in samples], float)
    scale = matrix.max(0) / values.max()  # the solver's tolerances suit numbers near one
    relative, error = matrix / scale / values[:, None], np.ones((len(values), 1))
    found = linprog(  # of coefficients and the error, the error: relative x coefficients lies within 1 -+ error
        [*np.zeros(len(terms)), 1],
        np.block([[relative, -error], [-relative, -error]]),
        np.concatenate([np.ones(len(values)), -np.ones(len(values))]),
    ).x[:-1]
    coefficients = found / scale
    below = float((1 - matrix @ coefficients / values).max())
    kept = [(term, float(c)) for term, c in zip(terms, coefficients, strict=True) if c > 0]
    return Polynomial(tuple(term for term, _ in kept), tuple(c for _, c in kept), below if below > EXACT else 0.0)


def terms_of(named: set[str]) -> list[tuple[str, ...]]:
    """Return the products of dimensions in the cost of a transformer or a convolution.

    Tokens are the product of the spatial dimensions. They, the text's and those of reference pictures attend to each
    other, hence squares.
    """
    space = tuple(name for name in SPATIAL if name in named)
    text = tuple(name for name in TEXTUAL if name in named)
    given = ("references",) if "references" in named else ()
    batch = ("batch",) if "batch" in named else ()
    parts: list[tuple[str, ...]] = [()]
    parts += [space, space * 2] if space else []
    parts += [text, text * 2] if text else []
    parts += [space + text] if space and text else []
    parts += [given, given * 2, given + space, given + text] if given else []
    return list(dict.fromkeys([(), *(batch + part for part in parts)]))


def trials(content: Manifest, component: str, named: set[str]) -> list[dict[str, int]]:
    """Return the sizes to walk the graph at: squares and one oblong, for each batch and the least and most frames."""
    found = dimensions(content, component, default_range(content))
    smallest, _, largest = found["height"]
    between = smallest + (largest - smallest) // (2 * STEP) * STEP
    planes = [(side, side) for side in sorted({smallest, between, largest})] + [(smallest, largest)]
    planes = planes if "height" in named else planes[:1]
    others = {name: sorted(set(found[name])) for name in found.keys() - {"height", "width"}}
    others = {name: values if name in named else values[:1] for name, values in others.items()}
    return [
        {"height": height, "width": width, **dict(zip(others, values, strict=True))}
        for height, width in planes
        for values in itertools.product(*others.values())
    ]
