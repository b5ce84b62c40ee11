"""An engine whose graph is in parts: one is in memory while it works, and the next is loaded meanwhile, if at all."""

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
    """A part that `open` loads, and the names of what it takes: inputs of the graph, or what earlier parts made."""

    open: Callable[[], Engine]
    inputs: Sequence[str]


class StreamedEngine(Closing):
    """An `Engine` of parts, each loaded anew in every call; between calls nothing is held.

    `ahead` has a thread load the next part while one works: faster, and two are in memory at a time. `where` names the
    component in messages. Arrays stay on the host. Raises what the parts raise, when they do.
    """

    def __init__(
        self, parts: Sequence[StreamedPart], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
        where: str, ahead: bool,
    ) -> None:  # fmt: skip
        self.inputs, self.outputs = inputs, outputs
        self._parts, self._where, self._ahead, self._closed = parts, where, ahead, False

    @property
    def device_bytes(self) -> int | None:
        """Return 0: between calls nothing is held."""
        return 0

    def run(self, feeds: Mapping[str, Array], keep: Collection[str] = ()) -> dict[str, Any]:
        """Run the parts in order once; see `Engine.run`. `keep` must be empty."""
        if self._closed:
            raise UsageError(f"{self._where} was closed. Open the bundle again.")
        if keep:
            raise self._on_host()
        values: dict[str, Any] = fit_feeds(self.inputs, feeds, self._where)
        wanted = {spec.name for spec in self.outputs}
        with ThreadPoolExecutor(1) as loader:  # which starts its thread when something is submitted
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
            raise BundleError(f"the parts of {self._where} do not make {lacking[0]!r}. Export the bundle again.")
        return {name: values[name] for name in names}

    def put(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Resident]:
        """Raise UsageError: what is streamed takes arrays of the host."""
        raise self._on_host()

    def close(self) -> None:
        """Refuse further calls; between them nothing is held."""
        self._closed = True

    def _on_host(self) -> UsageError:
        return UsageError(f"{self._where} is streamed, and its arrays stay on the host. Feed numpy's arrays.")
