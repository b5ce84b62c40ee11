"""Record the GPU work of a run once and replay it. This saves the driver's work between kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

from ...errors import SegueError
from ..base import Closing

KEPT = 4  # recordings; a loop with alternating buffers has two


class CudaGraph(Closing):
    """Recordings of one execution context. `did(result)` unpacks the result of a CUDA call, or raises its error."""

    def __init__(self, cuda: Any, stream: int, did: Callable[[tuple[Any, ...]], Any]) -> None:
        self._cuda, self._stream, self._did = cuda, stream, did
        self._shapes: Hashable = None
        self._recorded: dict[Hashable, Any] = {}  # by addresses; None if nothing is recorded yet
        self._refused = False  # some engines cannot be captured; the first attempt tells

    def run(self, shapes: Hashable, addresses: Hashable, execute: Callable[[], None]) -> None:
        """Run `execute` on the stream, or replay it if an earlier call had the same shapes and addresses.

        The first call with them is not recorded, because TensorRT does its setup in it; the second call is. Other
        shapes void all recordings. If `execute` raises SegueError during recording, later calls run without recording.
        """
        if shapes != self._shapes or (addresses not in self._recorded and len(self._recorded) == KEPT):
            self.close()
            self._shapes = shapes
        if addresses not in self._recorded:
            execute()
            self._recorded[addresses] = None
            return
        if self._recorded[addresses] is None and not self._refused:
            self._recorded[addresses] = self._record(execute)
        if self._recorded[addresses] is None:
            execute()
        else:
            self._did(self._cuda.cudaGraphLaunch(self._recorded[addresses], self._stream))

    def close(self) -> None:
        """Free the recordings. Closing twice is allowed."""
        for recorded in filter(None, self._recorded.values()):
            with contextlib.suppress(Exception):
                self._cuda.cudaGraphExecDestroy(recorded)
        self._recorded.clear()
        self._shapes = None

    def _record(self, execute: Callable[[], None]) -> Any:
        """Return a recording of `execute`, or None if it cannot be captured; later calls do not try again."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        graph = None
        try:
            self._did(self._cuda.cudaStreamBeginCapture(self._stream, mode))
            try:
                execute()
            finally:
                graph = self._did(self._cuda.cudaStreamEndCapture(self._stream))
            return self._did(self._cuda.cudaGraphInstantiate(graph, 0))
        except SegueError:
            self._refused = True
            return None
        finally:
            if graph is not None:
                with contextlib.suppress(Exception):
                    self._cuda.cudaGraphDestroy(graph)
