"""What one graph of a model is: where its module comes from, its inputs and outputs, and the sizes to try it at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

WEIGHT = "weight"  # stands in `Port.dtype` for the dtype of the component's own weights


@dataclass(frozen=True)
class Port:
    """A graph input or output: name, numpy dtype name or `WEIGHT`, and a shape whose free dimensions are named."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with each free dimension replaced by its entry of `sizes`."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    def elements(self, sizes: Mapping[str, int]) -> int:
        """Return how many numbers the port carries at `sizes`."""
        return math.prod(self.sized(sizes))


@dataclass(frozen=True)
class Graph:
    """One graph of a family.

    `build()` makes the model in diffusers' or transformers' own class with its first weights, `load(folder)` the same
    with those of a checkpoint's folder in float32. `wrap(model)` is a module whose parameters carry the checkpoint's
    names after `model.` and whose positional inputs are `inputs`. `buffer(name)` computes a buffer that no file may
    hold (float32), or returns None for a name that it does not know. `alias(name)` is the name that a parameter has in
    checkpoints of another age.
    `traced` has sizes of 2 or more everywhere: torch.export turns a 1 into a constant. `trials` are the sizes of the
    parity check and differ from `traced`. `feed(rng, sizes)` draws inputs for a trial as numpy arrays, floats as
    float32.
    """

    component: str
    folder: str
    file: str
    opset: int
    build: Callable[[], torch.nn.Module]
    wrap: Callable[[torch.nn.Module], torch.nn.Module]
    load: Callable[[str], torch.nn.Module]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    traced: Mapping[str, int]
    trials: tuple[Mapping[str, int], ...]
    feed: Callable[[np.random.Generator, Mapping[str, int]], dict[str, np.ndarray]]
    buffer: Callable[[str], np.ndarray | None]
    alias: Callable[[str], str] = lambda name: name
    weighted: bool = True  # whether it has weights at all
    narrow: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model.half()  # as its graph in fp16 computes
