"""One graph of a model: the source of its module, its inputs and outputs, and the sizes of its trials."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Graph:
    """One graph of a family.

    `build()` makes the model in diffusers' or transformers' class with initial weights. `load(folder)` makes it with
    the weights of a checkpoint's folder, in float32. `wrap(model)` is a module with the positional inputs `inputs`; its
    parameters have the checkpoint's names after `model.`. `buffer(name)` computes a buffer (float32) that the files may
    lack, or returns None for an unknown name. `alias(name)` is a parameter's name in checkpoints of another version.

    All sizes of `traced` are 2 or more, because torch.export turns a 1 into a constant. `trials` are the sizes of the
    parity check and differ from `traced`. `feed(rng, sizes)` draws a trial's inputs as numpy arrays, floats as float32.
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
    weighted: bool = True  # whether it has any weights
    narrow: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model.half()  # as in its fp16 graph
