"""What every backend offers: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from ..errors import UsageError


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: numpy dtype name, and a shape whose free dimensions are named."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Engine(Protocol):
    """One loaded component, ready to run.

    `run` takes one array for every input, casts floating-point feeds to the graph's own dtype and returns one array for
    every output, in the graph's dtype. It raises UsageError for a missing, unknown or ill-shaped feed and SegueError
    when the backend fails. An engine is also a context manager; after `close` it cannot run.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Closing:
    """What is closed when its `with` block ends."""

    def close(self) -> None:
        """Free what is held. Closing twice is allowed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fit_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Return `feeds` as contiguous arrays of the dtypes that `specs` name; `where` names the graph in messages.

    Only float-to-float and integer-to-integer casts are made: anything else is a caller's mistake. Raises UsageError
    for a missing or unknown name, a wrong dtype kind, rank or fixed dimension, and for two sizes of one named
    dimension.
    """
    expected = {spec.name for spec in specs}
    if feeds.keys() != expected:
        wrong = ", ".join(sorted(feeds.keys() ^ expected))
        raise UsageError(
            f"{where} takes {', '.join(sorted(expected))}; missing or unknown: {wrong}. Feed exactly these."
        )
    free: dict[str, int] = {}
    fitted = {}
    for spec in specs:
        array, dtype = np.asarray(feeds[spec.name]), np.dtype(spec.dtype)
        same = len(array.shape) == len(spec.shape) and all(
            size == (free.setdefault(dim, size) if isinstance(dim, str) else dim)
            for size, dim in zip(array.shape, spec.shape, strict=True)
        )
        if not same:
            raise UsageError(
                f"{where} takes {spec.name} of shape {list(spec.shape)}, got {list(array.shape)}"
                f"{f' where {free}' if free else ''}. Feed an array of that shape."
            )
        if array.dtype != dtype and (array.dtype.kind != dtype.kind or dtype.kind not in "fiu"):
            raise UsageError(f"{where} takes {spec.name} as {dtype}, got {array.dtype}. Convert the array first.")
        fitted[spec.name] = np.ascontiguousarray(array, dtype)
    return fitted
