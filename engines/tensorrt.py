"""Running an engine of TensorRT or TensorRT-RTX on a GPU, with buffers and scratch memory of our own."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..errors import EngineError, MissingDependencyError, SegueError, UsageError
from . import devices, targets
from .base import TensorSpec, fit_feeds

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8"}


class TensorRtEngine:
    """An `Engine` of a plan, whose bytes were checked by the caller (`runtime.engine_cache`).

    `names` are the graph's free dimensions by input or output, for messages: a plan does not keep them. `weights` is
    the device memory in bytes that weights may take, where the plan can stream them (None: all of them).

    Raises EngineError without a GPU, and for a plan that this machine's version or GPU does not take;
    MissingDependencyError without the target's package or cuda-python.
    """

    def __init__(self, plan: Path, target: str, weights: int | None = None) -> None:
        self._where = f"the engine {plan}"
        found = devices.driver()
        if not found.gpus:  # the deserialiser may end the process then
            raise EngineError(f"{self._where} needs a GPU: {found.why}. Use the target ort-cpu here.")
        self._trt = trt = targets.load(targets.find_target(target))
        self._cuda = _cuda()
        self._logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(self._logger)
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(
                f"{self._where} does not fit {found.gpus[0].name} with driver {found.version} and "
                f"{trt.__name__} {trt.__version__}. Run segue build again on this machine."
            )
        if weights is not None and self._engine.streamable_weights_size:
            self._engine.weight_streaming_budget_v2 = min(weights, self._engine.streamable_weights_size)
        self._context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._stream = self._did(self._cuda.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address and bytes on the device
        specs = [self._spec(self._engine.get_tensor_name(i)) for i in range(self._engine.num_io_tensors)]
        modes = [self._engine.get_tensor_mode(spec.name) for spec in specs]
        self.inputs = tuple(s for s, mode in zip(specs, modes, strict=True) if mode == trt.TensorIOMode.INPUT)
        self.outputs = tuple(s for s, mode in zip(specs, modes, strict=True) if mode == trt.TensorIOMode.OUTPUT)

    @property
    def device_bytes(self) -> int:
        """Return the device memory of buffers and scratch, weights left out."""
        return sum(size for _, size in self._buffers.values())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once; see `Engine.run`."""
        if self._engine is None:
            raise UsageError(f"{self._where} was closed. Open the bundle again.")
        fitted = fit_feeds(self.inputs, feeds, self._where)
        cuda, context, stream = self._cuda, self._context, self._stream
        context.set_optimization_profile_async(self._profile({k: v.shape for k, v in fitted.items()}), stream)
        for name, array in fitted.items():
            context.set_input_shape(name, array.shape)
            address = self._room(name, array.nbytes)
            context.set_tensor_address(name, address)
            self._did(cuda.cudaMemcpyAsync(
                address, array.ctypes.data, array.nbytes, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream
            ))  # fmt: skip
        made = {}
        for spec in self.outputs:
            made[spec.name] = np.empty(tuple(context.get_tensor_shape(spec.name)), spec.dtype)
            context.set_tensor_address(spec.name, self._room(spec.name, made[spec.name].nbytes))
        scratch = context.update_device_memory_size_for_shapes()
        context.set_device_memory(self._room("", scratch), scratch)
        if not context.execute_async_v3(stream):
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in fitted.items())
            raise SegueError(
                f"{self._where} failed on {shapes}. Free device memory, or run segue verify on the bundle."
            )
        back = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, array in made.items():
            address, _ = self._buffers[name]
            self._did(cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, back, stream))
        self._did(cuda.cudaStreamSynchronize(stream))
        return made

    def close(self) -> None:
        """Free the engine, its weights and its buffers. Closing twice is allowed."""
        if self._engine is None:
            return
        self._did(self._cuda.cudaStreamSynchronize(self._stream))
        self._context = self._engine = None
        for address, _ in self._buffers.values():
            self._did(self._cuda.cudaFree(address))
        self._buffers.clear()
        self._did(self._cuda.cudaStreamDestroy(self._stream))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise EngineError(f"{self._where} has {name} as {dtype}, which numpy cannot feed. Export the bundle again.")
        shape = tuple(f"{name}_{i}" if d < 0 else int(d) for i, d in enumerate(self._engine.get_tensor_shape(name)))
        return TensorSpec(name, _DTYPES[dtype], shape)

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the number of the first profile that has room for all the shapes."""
        for index in range(self._engine.num_optimization_profiles):
            limits = {name: self._engine.get_tensor_profile_shape(name, index) for name in shapes}
            if all(
                low <= side <= high
                for name, shape in shapes.items()
                for low, side, high in zip(limits[name][0], shape, limits[name][2], strict=True)
            ):
                return index
        raise EngineError(
            f"{self._where} was not built for {', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())}. "
            "Build one for that size: segue build BUNDLE --shapes WIDTHxHEIGHT"
        )

    def _room(self, name: str, size: int) -> int:
        """Return the address of a device buffer of at least `size` bytes, kept under `name` for the next call."""
        address, have = self._buffers.get(name, (0, 0))
        if have < size:
            if have:
                self._did(self._cuda.cudaStreamSynchronize(self._stream))
                self._did(self._cuda.cudaFree(address))
                del self._buffers[name]
            address = self._did(self._cuda.cudaMalloc(size))
            self._buffers[name] = (address, size)
        return address

    def _did(self, result: tuple[Any, ...]) -> Any:
        """Return what a call of CUDA gave; raises SegueError where it failed."""
        status, *values = result
        if int(status) != 0:
            raise SegueError(
                f"CUDA failed in {self._where}: {status!r}, with {self.device_bytes} bytes in its buffers. "
                "If memory ran out, ask for a smaller size."
            )
        return values[0] if values else None


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingDependencyError(
            "running engines needs cuda-python, which is not installed. Run: pip install cuda-python"
        ) from None
    return runtime
