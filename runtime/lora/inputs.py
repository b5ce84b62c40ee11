"""The inputs of a denoiser that take a LoRA at run time.

`segue export --lora-rank R` gives each matrix W [out, in] of a module the inputs `lora.MODULE.A` [R, in] and
`lora.MODULE.B` [out, R], and the graph one input `lora.scale` [1]: y = W x + B (scale A x). Zeros change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..bundle.manifest import Component, TensorSpec

PREFIX, DOWN, UP = "lora.", ".A", ".B"
SCALE = f"{PREFIX}scale"
NAMES = "lora_names.json"  # in the component's folder: modules by their names in the original layout
MAX_NAMES = 16 * 2**20  # bytes of NAMES


def is_adapter(name: str) -> bool:
    """Return whether an input of a graph takes a LoRA."""
    return name.startswith(PREFIX)


def plain(inputs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the inputs that do not take a LoRA."""
    return tuple(spec for spec in inputs if not is_adapter(spec.name))


def adapted(component: Component) -> Iterator[tuple[str, TensorSpec, TensorSpec]]:
    """Yield each module that takes a LoRA, with its inputs A [rank, in] and B [out, rank]."""
    specs = {spec.name: spec for spec in component.inputs if is_adapter(spec.name)}
    for name, down in specs.items():
        up = specs.get(f"{name.removesuffix(DOWN)}{UP}")
        if not name.endswith(DOWN) or up is None or not len(down.shape) == len(up.shape) == 2:
            continue
        if down.shape[0] == up.shape[1] and all(isinstance(size, int) for size in (*down.shape, *up.shape)):
            yield name[len(PREFIX) : -len(DOWN)], down, up


def rank_of(component: Component) -> int:
    """Return the rank that the component takes; 0 if it takes no LoRA."""
    sizes = [down.shape[0] for _, down, _ in adapted(component)]
    return min((size for size in sizes if isinstance(size, int)), default=0)


def zeros(inputs: Iterable[TensorSpec]) -> dict[str, np.ndarray]:
    """Return feeds of the inputs that take a LoRA, which change nothing."""
    return {
        spec.name: np.zeros([size for size in spec.shape if isinstance(size, int)], spec.dtype)
        for spec in inputs
        if is_adapter(spec.name)
    }
