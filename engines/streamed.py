"""An engine of a graph in parts. Memory holds only the part that runs and, on request, the next one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BundleError, UsageError
from . import heap
from .base import Array, Closing, Engine, Resident, TensorSpec, fit_feeds


@dataclass(frozen=True)
class StreamedPart:
    """A part that `open` loads. `inputs` names the arrays that it takes, from the graph's inputs or earlier parts."""

    open: Callable[[], Engine]
    inputs: Sequence[str]


class StreamedEngine(Closing):
    """An `Engine` of parts. Every call loads each part again; between calls the engine holds no memory.

    With `ahead` a thread loads the next part while one works: this is faster, and two parts are in memory at a time.
    `where` names the component in messages. Arrays stay on the host. Raises the errors of its parts.
    """

    def __init__(
        self, parts: Sequence[StreamedPart], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
        where: str, ahead: bool,
    ) -> None:  # fmt: skip
        self.inputs, self.outputs = inputs, outputs
        self._parts, self._where, self._ahead, self._closed = parts, where, ahead, False

    @property
    def device_bytes(self) -> int | None:
        """Return 0: between calls the engine holds no memory."""
        return 0

    def run(self, feeds: Mapping[str, Array], keep: Collection[str] = ()) -> dict[str, Any]:
        """Run the parts in order once; see `Engine.run`. `keep` must be empty."""
        if self._closed:
            raise UsageError(f"{self._where} was closed. Open the bundle again.")
        if keep:
            raise self._on_host()
        values: dict[str, Any] = fit_feeds(self.inputs, feeds, self._where)
        wanted = {spec.name for spec in self.outputs}
        with ThreadPoolExecutor(1) as loader:  # starts its thread at the first submit
            coming: Future[Engine] | None = None
            try:
                for number, part in enumerate(self._parts):
                    engine, coming = part.open() if coming is None else coming.result(), None
                    following = self._parts[number + 1 :]
                    with engine:
                        if self._ahead and following:
                            coming = loader.submit(following[0].open)
                        values |= engine.run(self._taken(values, part.inputs))
                    del engine
                    later = wanted.union(*(part.inputs for part in following))
                    values = {name: value for name, value in values.items() if name in later}
                    heap.trim()
            finally:
                if coming is not None and coming.exception() is None:
                    coming.result().close()
        return self._taken(values, [spec.name for spec in self.outputs])

    def _taken(self, values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        lacking = [name for name in names if name not in values]
        if lacking:
            raise BundleError(f"the parts of {self._where} do not compute {lacking[0]!r}. Export the bundle again.")
        return {name: values[name] for name in names}

    def put(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Resident]:
        """Raise UsageError: a streamed engine takes arrays on the host."""
        raise self._on_host()

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def _on_host(self) -> UsageError:
        return UsageError(f"{self._where} is streamed, and its arrays stay on the host. Feed numpy arrays.")
