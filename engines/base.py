"""The interface of every backend: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from ..errors import UsageError


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: numpy dtype name, and a shape whose free dimensions are named."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Closing:
    """An object that its `with` block closes."""

    def close(self) -> None:
        """Free everything that the object holds. Closing twice is allowed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Resident(Closing):
    """An array in the memory of an engine's device. The engine frees the arrays that it keeps."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype

    def numpy(self) -> np.ndarray:
        """Return a copy on the host."""
        raise NotImplementedError


Array = np.ndarray | Resident
Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # input -> its smallest, usual and largest shape


class Engine(Protocol):
    """One loaded component, ready to run.

    `run` takes one array for every input and casts floating-point feeds to the graph's dtype. It returns one array for
    every output, in the graph's dtype. A feed may be a resident array of exactly that dtype from an engine of the same
    target. `run` returns the outputs named in `keep` as resident arrays, without a copy. They keep their values until
    the engine is closed or has run twice more, failed runs included.

    `put` copies arrays to the device, by input name; the caller closes them. `run` and `put` raise UsageError for a
    missing, unknown or ill-shaped feed, and SegueError if the backend fails. An engine is also a context manager; after
    `close` it cannot run. `device_bytes` is the device memory that the engine holds now, in bytes, weights included;
    None if the backend does not report it.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def device_bytes(self) -> int | None: ...  # noqa: D102

    def run(self, feeds: Mapping[str, Array], keep: Collection[str] = ()) -> dict[str, Any]: ...  # noqa: D102

    def put(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Resident]: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def fit_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array], where: str) -> dict[str, Any]:
    """Return `feeds` as contiguous arrays of the dtypes that `specs` name; `where` names the graph in messages.

    Floats are cast to floats. Whole numbers, floats too, are cast to integers: a timestep of 999.0 fits an int64 input.
    0 and 1 are cast to bool. Resident arrays are never cast. Raises UsageError for a missing or unknown name, a wrong
    dtype, rank or fixed dimension, for two sizes of one named dimension, and for a value that the input cannot hold.
    """
    expected = {spec.name for spec in specs}
    if feeds.keys() != expected:
        wrong = ", ".join(sorted(feeds.keys() ^ expected))
        raise UsageError(
            f"{where} takes {', '.join(sorted(expected))}; missing or unknown: {wrong}. Feed exactly these."
        )
    free: dict[str, int] = {}
    fitted: dict[str, Any] = {}
    for spec in specs:
        given, dtype = feeds[spec.name], np.dtype(spec.dtype)
        array = given if isinstance(given, Resident) else np.asarray(given)
        same = len(array.shape) == len(spec.shape) and all(
            size == (free.setdefault(dim, size) if isinstance(dim, str) else dim)
            for size, dim in zip(array.shape, spec.shape, strict=True)
        )
        if not same:
            raise UsageError(
                f"{where} takes {spec.name} of shape {list(spec.shape)}, got {list(array.shape)}"
                f"{f' with the sizes {free}' if free else ''}. Feed an array of that shape."
            )
        resident = isinstance(array, Resident)
        if array.dtype != dtype and (resident or not _becomes(array, dtype)):
            how = "Call numpy() on it and feed the copy." if resident else "Convert the array first."
            raise UsageError(f"{where} takes {spec.name} as {dtype}, got {array.dtype}. {how}")
        fitted[spec.name] = (
            array if resident else np.require(array, dtype, "C")
        )  # ascontiguousarray would give a scalar a dimension
    return fitted


def _becomes(array: Any, dtype: np.dtype) -> bool:
    """Return whether floats can be cast to `dtype`, and whole numbers in its range to an integer or to bool."""
    if dtype.kind == "f":
        return bool(array.dtype.kind == "f")
    if array.dtype.kind not in "fiu" or dtype.kind not in "iub":
        return False
    if not array.size:
        return True
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    whole = array.dtype.kind != "f" or bool(np.isfinite(array).all() and (array == np.trunc(array)).all())
    return whole and least <= int(array.min()) and int(array.max()) <= most
