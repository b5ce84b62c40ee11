"""Find out which tensors of a conversion are plain byte ranges, by converting row numbers in place of weights.

Each tensor [r, c, ...] is replaced by a tensor [r, 1, ...] of running numbers. A result whose numbers are one unbroken
run of one source is a run of rows: a byte range of the file. Anything else has to be computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..headers import Tensor

MOST_ROWS = 2**24  # of one component; the largest published ones have two million
Convert = Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor | None]]


@dataclass(frozen=True)
class Found:
    """The converted tensors of one component.

    `ranges` are byte ranges of the file under their new names. `computed` gives the shape of each other tensor, and
    `sources` the tensors of the file that it is made of.
    """

    ranges: dict[str, Tensor]
    computed: dict[str, tuple[int, ...]]
    sources: dict[str, tuple[str, ...]]


def probe(tensors: Mapping[str, Tensor], convert: Convert) -> Found:
    """Return how `convert`, a converter of diffusers, makes its results from `tensors`. No weight is read.

    The converter must move whole rows: what it does within a row is seen only by the shapes. Raises ValueError for
    more rows than any model has, which would take as much memory as the weights.
    """
    rows = [tensor.shape[0] if tensor.shape else 1 for tensor in tensors.values()]
    starts = [0, *itertools.accumulate(rows)]
    if starts[-1] > MOST_ROWS:
        raise ValueError(f"its tensors have {starts[-1]} rows, above the limit of {MOST_ROWS}")
    keys, bounds = list(tensors), torch.tensor(starts[1:])
    numbers = {
        key: torch.arange(start, start + count).reshape(_narrow(tensors[key].shape, count))
        for key, start, count in zip(keys, starts, rows, strict=False)
    }
    shapes = {
        key: tuple(value.shape)
        for key, value in convert({k: torch.empty(t.shape, device="meta") for k, t in tensors.items()}).items()
        if value is not None
    }
    ranges, computed, sources = {}, {}, {}
    for name, value in convert(numbers).items():
        if value is None:
            continue
        run = value.reshape(-1)
        whole = value.dtype == torch.int64
        used = torch.searchsorted(bounds, run, right=True).unique().tolist() if whole else []
        plain = len(used) == 1 and _is_run(value, shapes[name])
        source = tensors[keys[used[0]]] if used else None
        if plain and source is not None and _same_row(source.shape, shapes[name]):
            size = source.length // max(source.shape[0] if source.shape else 1, 1)
            first = int(run[0]) - starts[used[0]]
            ranges[name] = Tensor(
                name, source.file, source.offset + first * size, len(run) * size, source.dtype, shapes[name]
            )
        else:
            computed[name] = shapes[name]
            sources[name] = tuple(keys[place] for place in used)
    return Found(ranges, computed, sources)


def compute(
    name: str, found: Found, tensors: Mapping[str, Tensor], convert: Convert, load: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """Return one computed tensor. `load` reads a tensor of the file; only those that the result needs are read."""
    needed = found.sources[name]
    given = {k: load(k) if k in needed else torch.empty(t.shape, device="meta") for k, t in tensors.items()}
    result = convert(given)[name]
    assert result is not None
    return result


def _narrow(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return (rows, *(1 for _ in shape[1:])) if shape else ()


def _is_run(value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    run = value.reshape(-1)
    rows = shape[0] if shape else 1
    # A transposed matrix has unbroken numbers too, but not along its rows.
    along = value.numel() == (value.shape[0] if value.ndim else 1) == rows
    return along and torch.equal(run, run[0] + torch.arange(len(run)))


def _same_row(source: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Return whether a row keeps its sizes, but for sizes of 1: a convolution of 1 x 1 is a matrix."""
    kept = [size for size in source[1:] if size != 1]
    return kept == [size for size in made[1:] if size != 1] and math.prod(source[1:]) == math.prod(made[1:])
