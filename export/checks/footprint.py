"""Measure the memory that ONNX Runtime takes on a processor for each component, in a child process, for the planner.

The measure is the kernel's high-water mark of resident memory. So it works only on Linux with glibc, and for components
that fit into the free memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ParityError
from ...runtime.bundle.manifest import Component, Manifest, Part
from ...runtime.bundle.polynomial import Footprint, Polynomial
from ...runtime.bundle.shapes import default_range, dimensions, sized
from ...runtime.planning import memory
from ..graphs.cost_model import fit, terms_of, trials
from .child import run_check
from .parity import BASE_BYTES, BYTES_PER_PARAMETER

MOST_FLOPS = 5e11  # of a call that is tried; about ten seconds on one core
MOST_BYTES = 2**30  # of activations in such a call
LEAST = 2**20  # a call is recorded with at least these bytes; pages vary by nearly as much
WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "w8a8": 1, "fp8": 1}  # bytes of a weight
UNTRIED = frozenset({"bf16", "w8a8", "fp8"})  # ONNX Runtime's CPU does not run these


def with_footprints(bundle: Path, content: Manifest, warn: Callable[[str], None] = lambda text: None) -> Manifest:
    """Return the manifest of the directory `bundle` with the footprint of each component that can be measured.

    `warn` gets the error of a failed measurement. Then the planner uses the counted costs instead.
    """
    tried = {name: _tried(content, name) for name, spec in content.components.items() if _can_be(spec, spec.parameters)}
    pieces = {
        part.graph: bundle / part.graph
        for spec in content.components.values()
        for part in spec.parts
        if _can_be(spec, part.bytes // WIDTH[spec.precision])
    }
    requests = [_asked(bundle, content.components[name], name, tried[name]) for name in tried]
    requests += [
        {"name": name, "graph": str(graph), "shapes": [], "parts": [], "outputs": []} for name, graph in pieces.items()
    ]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in (*content.components, *pieces)}
    try:
        run_check("footprint_child", {"graphs": requests}, lambda values: answers[values.pop("name")].append(values))
    except ParityError as error:
        warn(f"memory was not measured: {error}")
    components = {
        name: replace(
            spec,
            footprint=_fitted(spec, tried.get(name, []), answers[name]),
            parts=_weighed(spec, tried.get(name, []), answers[name], answers),
        )
        for name, spec in content.components.items()
    }
    return replace(content, components=components)


def _asked(bundle: Path, spec: Component, name: str, tried: list[dict[str, int]]) -> dict[str, Any]:
    """Return the request for one component."""
    return {
        "name": name,
        "graph": str(bundle / spec.graph),
        "shapes": [{p.name: [[sized(s, dims, name) for s in p.shape], p.dtype] for p in spec.inputs} for dims in tried],
        "parts": [{"graph": str(bundle / part.graph), "inputs": part.inputs} for part in spec.parts],
        "outputs": [port.name for port in spec.outputs],
    }


def _weighed(
    spec: Component, tried: list[dict[str, int]], own: list[dict[str, Any]], answers: dict[str, list[dict[str, Any]]]
) -> tuple[Part, ...]:
    """Return the parts of a component with their measured memory, if any."""
    made, count = [], len(spec.parts)
    calls = own[1 + len(tried) :]  # part after part, for one size after another
    for number, part in enumerate(spec.parts):
        if alone := answers.get(part.graph):
            part = replace(part, **{what: max(alone[0][what], LEAST) for what in ("loading", "loaded")})
        if len(tried) > 1 and len(calls) == count * len(tried):
            part = replace(part, working=_polynomial(spec, tried[1:], calls[number + count :: count]))
        made.append(part)
    return tuple(made)


def _polynomial(spec: Component, tried: list[dict[str, int]], calls: list[dict[str, Any]]) -> Polynomial:
    samples: list[tuple[Mapping[str, int], int]] = [
        (dims, max(call["working"], LEAST)) for dims, call in zip(tried, calls, strict=True)
    ]
    return fit(samples, terms_of(_named(spec)))


def _can_be(spec: Component, parameters: int) -> bool:
    needed = BASE_BYTES + parameters * BYTES_PER_PARAMETER.get(spec.precision, 10)
    fits = needed <= memory.available()
    return (
        sys.platform.startswith("linux")
        and fits
        and bool(spec.weights)
        and spec.cost is not None
        and spec.precision not in UNTRIED
    )


def _tried(content: Manifest, name: str) -> list[dict[str, int]]:
    """Return the sizes to call a component at; the first call fills caches."""
    spec = content.components[name]
    assert spec.cost is not None
    usual = {base: three[1] for base, three in dimensions(content, name, default_range(content)).items()}
    cost, sizes = spec.cost, (usual, usual, *trials(content, name, _named(spec)))
    return [dims for dims in sizes if cost.flops.at(dims) <= MOST_FLOPS and cost.widened.at(dims) <= MOST_BYTES]


def _named(spec: Component) -> set[str]:
    return {part.partition("_")[0] for port in spec.inputs for part in port.shape if isinstance(part, str)}


def _fitted(spec: Component, tried: list[dict[str, int]], answers: list[dict[str, Any]]) -> Footprint | None:
    if len(answers) < 1 + len(tried) or len(tried) < 2:
        return None
    first, _, *calls = answers[: 1 + len(tried)]
    return Footprint(first["loading"], first["loaded"], _polynomial(spec, tried[1:], calls))
