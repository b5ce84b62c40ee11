"""Running an engine of TensorRT or TensorRT-RTX on a GPU, with buffers and scratch memory of our own."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError, MissingDependencyError, SegueError, UsageError
from . import devices, targets
from .base import Closing, TensorSpec, fit_feeds
from .tensorrt_build import make_logger

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8"}
_SCRATCH = ""  # the name of the scratch buffer among the others


class TensorRtEngine(Closing):
    """An `Engine` of a plan, whose bytes were checked by the caller (`runtime.engine_cache`).

    `weights` is the device memory in bytes that weights may take, where the plan can stream them (None: all of them).
    Each run picks the tightest of the plan's profiles that has room for the shapes fed.

    Raises EngineError without a GPU, and for a plan that this machine's version or GPU does not take;
    MissingDependencyError without the target's package or cuda-python.
    """

    def __init__(self, plan: Path, target: str, weights: int | None = None) -> None:
        self._where = f"the engine {plan}"
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address and bytes on the device
        self._engine: Any = None
        self._stream: Any = None
        found = devices.driver()
        if not found.gpus:  # the deserialiser may end the process then
            raise EngineError(f"{self._where} needs a GPU: {found.why}. Use the target ort-cpu here.")
        self._trt = trt = targets.load(targets.find_target(target))
        self._cuda = _cuda()
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)  # lives as long as the engine, which does not keep it
        try:
            with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._engine = self._runtime.deserialize_cuda_engine(data)
        except (OSError, ValueError) as error:  # it was removed meanwhile, or is empty
            raise EngineError(f"{self._where} cannot be read: {error}. Run segue build again.") from None
        if self._engine is None:
            raise EngineError(
                f"{self._where} does not fit {found.gpus[0].name} with driver {found.version} and {trt.__name__} "
                f"{trt.__version__}: {self._logger.last()} Run segue build again on this machine."
            )
        try:
            self._prepare(weights)
        except BaseException:
            self.close()
            raise

    def _prepare(self, weights: int | None) -> None:
        trt, engine = self._trt, self._engine
        if weights is not None and engine.streamable_weights_size:
            engine.weight_streaming_budget_v2 = min(weights, engine.streamable_weights_size)
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._must(self._context is not None, "no execution context could be made")
        self._stream = self._did(self._cuda.cudaStreamCreate())
        specs = [self._spec(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
        modes = [engine.get_tensor_mode(spec.name) for spec in specs]
        self.inputs = tuple(s for s, mode in zip(specs, modes, strict=True) if mode == trt.TensorIOMode.INPUT)
        self.outputs = tuple(s for s, mode in zip(specs, modes, strict=True) if mode == trt.TensorIOMode.OUTPUT)

    @property
    def device_bytes(self) -> int:
        """Return the device memory of buffers and scratch, weights left out."""
        return sum(size for _, size in self._buffers.values())

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether one of the plan's profiles has room for inputs of these shapes."""
        return bool(self._profiles(shapes))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once; see `Engine.run`."""
        if self._engine is None:
            raise UsageError(f"{self._where} was closed. Open the bundle again.")
        fitted = fit_feeds(self.inputs, feeds, self._where)
        cuda, context, stream = self._cuda, self._context, int(self._stream)
        profile = self._profile({name: array.shape for name, array in fitted.items()})
        self._must(context.set_optimization_profile_async(profile, stream), f"profile {profile} could not be chosen")
        there, back = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, array in fitted.items():
            self._must(context.set_input_shape(name, array.shape), f"{name} does not take {list(array.shape)}")
            address = self._room(name, array.nbytes)
            self._must(context.set_tensor_address(name, address), f"{name} has no address")
            self._did(cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, there, stream))
        made = {}
        for spec in self.outputs:
            array = np.empty(tuple(context.get_tensor_shape(spec.name)), spec.dtype)
            address = self._room(spec.name, array.nbytes)
            self._must(context.set_tensor_address(spec.name, address), f"{spec.name} has no address")
            made[spec.name] = array
        scratch = context.update_device_memory_size_for_shapes()
        context.set_device_memory(self._room(_SCRATCH, scratch), scratch)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in fitted.items())
        self._must(context.execute_async_v3(stream), f"it failed on {shapes}")
        for name, array in made.items():
            self._did(cuda.cudaMemcpyAsync(array.ctypes.data, self._buffers[name][0], array.nbytes, back, stream))
        self._did(cuda.cudaStreamSynchronize(stream))
        return made

    def close(self) -> None:
        """Free the engine, its weights and its buffers, whatever state CUDA is in. Closing twice is allowed."""
        self._context = self._engine = None
        with contextlib.suppress(Exception):
            self._cuda.cudaStreamSynchronize(self._stream)
        for address, _ in self._buffers.values():
            with contextlib.suppress(Exception):
                self._cuda.cudaFree(address)
        self._buffers.clear()
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._cuda.cudaStreamDestroy(self._stream)
            self._stream = None

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise EngineError(f"{self._where} has {name} as {dtype}, which numpy cannot feed. Export the bundle again.")
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise EngineError(f"{self._where} wants {name} in host memory, which Segue does not do. Report it.")
        shape = tuple(f"{name}_{i}" if d < 0 else int(d) for i, d in enumerate(self._engine.get_tensor_shape(name)))
        return TensorSpec(name, _DTYPES[dtype], shape)

    def _profiles(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
        """Return the numbers of the profiles with room for all the shapes, and how large their largest inputs are."""
        sizes: dict[int, int] = {}
        for index in range(self._engine.num_optimization_profiles):
            limits = {name: self._engine.get_tensor_profile_shape(name, index) for name in shapes}
            if all(covers(limits[name], shape) for name, shape in shapes.items()):
                sizes[index] = sum(math.prod(limits[name][2]) for name in shapes)
        return sizes

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the number of the tightest profile that has room for all the shapes."""
        sizes = self._profiles(shapes)
        if not sizes:
            raise EngineError(
                f"{self._where} was not built for {', '.join(f'{name} {list(s)}' for name, s in shapes.items())}. "
                "Run segue build with --shapes for that size."
            )
        return min(sizes, key=lambda index: sizes[index])

    def _room(self, name: str, size: int) -> int:
        """Return the address of a device buffer of at least `size` bytes, kept under `name` for the next call."""
        size = max(size, 1)  # an address is wanted for nothing, too
        address, have = self._buffers.get(name, (0, 0))
        if have < size:
            if have:
                self._did(self._cuda.cudaStreamSynchronize(self._stream))
                del self._buffers[name]
                self._did(self._cuda.cudaFree(address))
            address = int(self._did(self._cuda.cudaMalloc(size)))
            self._buffers[name] = (address, size)
        return address

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise SegueError(
                f"{self._where}: {what}: {self._logger.last()} Free device memory, or run segue verify on the bundle."
            )

    def _did(self, result: tuple[Any, ...]) -> Any:
        """Return what a call of CUDA gave; raises SegueError where it failed."""
        status, *values = result
        if int(status) != 0:
            raise SegueError(
                f"CUDA failed in {self._where}: {status!r}, with {self.device_bytes} bytes in its buffers. "
                "If memory ran out, ask for a smaller size."
            )
        return values[0] if values else None


def covers(limits: tuple[Any, Any, Any], shape: tuple[int, ...]) -> bool:
    """Return whether a profile's smallest and largest shape of an input have `shape` between them."""
    lowest, _, highest = limits
    return len(lowest) == len(shape) and all(
        low <= side <= high for low, side, high in zip(lowest, shape, highest, strict=True)
    )


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingDependencyError(
            "running engines needs cuda-python, which is not installed. Run: pip install cuda-python"
        ) from None
    return runtime
