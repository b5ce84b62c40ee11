"""Run an engine of TensorRT or TensorRT-RTX on a GPU, with buffers and scratch memory of our own."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EngineError, MissingDependencyError, SegueError, UsageError
from .. import devices, targets
from ..base import Array, Closing, Resident, TensorSpec, fit_feeds
from .build import make_logger
from .cuda_graph import CudaGraph
from .scratch import Scratch

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8"}
_TURN = "\n"  # marks the buffers of kept outputs; no tensor's name has it
Fetch = Callable[[np.ndarray, int], None]  # fills the array from an address on the device


class TrtResident(Resident):
    """Device memory; `free` returns it to the system, None if an engine owns it."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: np.dtype, fetch: Fetch, free: Callable[[], None] | None
    ) -> None:
        super().__init__(shape, dtype)
        self.address, self._fetch, self._free = address, fetch, free

    def numpy(self) -> np.ndarray:
        """Return a copy on the host."""
        array = np.empty(self.shape, self.dtype)
        self._fetch(array, self.address)
        return array

    def close(self) -> None:
        """Free the memory, unless an engine owns it. Closing twice is allowed."""
        free, self._free = self._free, None
        if free is not None:
            free()


class TensorRtEngine(Closing):
    """An `Engine` of a plan. The caller checks the plan's bytes first (`runtime.engine_cache`).

    `weights` bounds the device memory of weights in bytes, if the plan can stream them (None: no bound). Each run picks
    the tightest profile that fits the fed shapes. Runs are recorded as CUDA graphs and replayed for the same shapes and
    addresses. `scratch` holds working memory, shared with engines that run at other times (None: its own).

    Raises EngineError without a GPU, and for a plan that does not fit this machine's version or GPU. Raises
    MissingDependencyError without the target's package or cuda-python.
    """

    def __init__(self, plan: Path, target: str, weights: int | None = None, scratch: Scratch | None = None) -> None:
        self._where = f"the engine {plan}"
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address and bytes on the device
        self._engine: Any = None
        self._graph: CudaGraph | None = None
        self._stream: Any = None
        self._chosen = -1  # the profile
        self._shaped: tuple[int, dict[str, tuple[int, ...]]] | None = None  # and the shapes of the run before
        self._streamed = 0  # bytes of weights that stay in host memory
        self._own = Scratch() if scratch is None else None
        self._scratch: Scratch = scratch or self._own  # type: ignore[assignment]
        self._works = 0  # bytes of scratch that the run before used, and their address
        self._placed = 0
        self._turn = 0  # kept outputs have two buffers each, written in turn
        found = devices.driver()
        if not found.gpus:  # without a GPU the deserialiser may end the process
            raise EngineError(f"{self._where} needs a GPU: {found.why}. Use the target ort-cpu here.")
        self._trt = trt = targets.load(targets.find_target(target))
        self._cuda = _cuda()
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)  # lives as long as the engine, which does not keep it
        try:
            with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._engine = self._runtime.deserialize_cuda_engine(data)
        except (OSError, ValueError) as error:  # the file was removed meanwhile, or is empty
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
        rtx = self._trt.__name__ == "tensorrt_rtx"
        streams = weights is not None and weights < engine.streamable_weights_size  # not captured
        if weights is not None and engine.streamable_weights_size:
            engine.weight_streaming_budget_v2 = min(weights, engine.streamable_weights_size)
            self._streamed = engine.streamable_weights_size - engine.weight_streaming_budget_v2
        ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if rtx:  # TensorRT-RTX compiles kernels when they first run, and captures itself
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(ours)
            capture = trt.CudaGraphStrategy
            config.cuda_graph_strategy = capture.DISABLED if streams else capture.WHOLE_GRAPH_CAPTURE
            self._context = engine.create_execution_context(config)
        else:
            self._context = engine.create_execution_context(ours)
        self._must(self._context is not None, "it could not make an execution context")
        # Not a stream that waits for the default stream, which no other thread may use during a capture
        flag = self._cuda.cudaStreamNonBlocking
        self._stream = self._did(self._cuda.cudaStreamCreateWithFlags(flag))
        if not rtx and not streams:
            self._graph = CudaGraph(self._cuda, int(self._stream), self._did)
        specs = [self._spec(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
        modes = [engine.get_tensor_mode(spec.name) for spec in specs]
        self.inputs = tuple(s for s, mode in zip(specs, modes, strict=True) if mode == trt.TensorIOMode.INPUT)
        self.outputs = tuple(s for s, mode in zip(specs, modes, strict=True) if mode == trt.TensorIOMode.OUTPUT)

    @property
    def device_bytes(self) -> int | None:
        """Return the device memory of weights, buffers and used scratch; None if TensorRT does not report the weights.

        Kernels, recorded graphs and other memory of the driver and TensorRT are not counted.
        """
        if self._engine is None:
            return 0
        weights = self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE)
        return None if weights < 0 else weights - self._streamed + self._held() + self._works

    def _held(self) -> int:
        return sum(size for _, size in self._buffers.values())

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether one of the plan's profiles fits inputs of these shapes."""
        return bool(self._profiles(shapes))

    def run(self, feeds: Mapping[str, Array], keep: Collection[str] = ()) -> dict[str, Any]:
        """Run the engine once; see `Engine.run`."""
        self._check_open()
        fitted = fit_feeds(self.inputs, feeds, self._where)
        cuda, context, stream = self._cuda, self._context, int(self._stream)
        profile = self._profile({name: array.shape for name, array in fitted.items()})
        if profile != self._chosen:  # setting the same profile again would void the recordings
            self._must(context.set_optimization_profile_async(profile, stream), f"it could not set profile {profile}")
            self._chosen = profile
        addresses = {}
        shapes = {name: tuple(array.shape) for name, array in fitted.items()}
        changed = (profile, shapes) != self._shaped  # setting the same shapes again would void the recordings
        self._shaped = None
        for name, array in fitted.items():
            if changed:
                self._must(context.set_input_shape(name, array.shape), f"{name} does not take {list(array.shape)}")
            if isinstance(array, TrtResident):
                addresses[name] = array.address
            else:
                addresses[name] = self._room(name, array.nbytes)
                self._copy(addresses[name], array)
        self._turn = 1 - self._turn
        made: dict[str, Any] = {}
        for spec in self.outputs:
            shape, dtype = tuple(context.get_tensor_shape(spec.name)), np.dtype(spec.dtype)
            place = f"{spec.name}{_TURN}{self._turn}" if spec.name in keep else spec.name
            address = addresses[spec.name] = self._room(place, math.prod(shape) * dtype.itemsize)
            made[spec.name] = TrtResident(address, shape, dtype, self._fetch, None)
        for name, address in addresses.items():
            self._must(context.set_tensor_address(name, address), f"{name} has no address")
        if changed:
            self._works = int(context.update_device_memory_size_for_shapes())
        room = self._scratch.room(self._works, cuda, self._did)
        if changed or room != self._placed:
            context.set_device_memory(room, self._works)
            self._placed = room
        execute = partial(self._execute, ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()))
        if self._graph is None:
            execute()
        else:
            self._graph.run((profile, room, *shapes.items()), tuple(addresses.items()), execute)
        self._shaped = profile, shapes
        self._did(cuda.cudaStreamSynchronize(stream))
        return {name: array if name in keep else array.numpy() for name, array in made.items()}

    def put(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Resident]:
        """Copy arrays to the device; see `Engine`."""
        self._check_open()
        fitted = fit_feeds(tuple(spec for spec in self.inputs if spec.name in feeds), feeds, self._where)
        placed: dict[str, Resident] = {}
        try:
            for name, array in fitted.items():
                address = int(self._did(self._cuda.cudaMalloc(max(array.nbytes, 1))))
                free = partial(self._cuda.cudaFree, address)
                placed[name] = TrtResident(address, array.shape, array.dtype, self._fetch, free)
                self._copy(address, array)
            self._did(self._cuda.cudaStreamSynchronize(self._stream))
        except BaseException:
            for resident in placed.values():
                resident.close()
            raise
        return placed

    def close(self) -> None:
        """Free the engine, its weights and its buffers, whatever state CUDA is in. Closing twice is allowed."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._context = self._engine = None
        self._works = 0
        with contextlib.suppress(Exception):
            self._cuda.cudaStreamSynchronize(self._stream)
        for address, _ in self._buffers.values():
            with contextlib.suppress(Exception):
                self._cuda.cudaFree(address)
        self._buffers.clear()
        if self._own is not None:
            self._own.close()
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._cuda.cudaStreamDestroy(self._stream)
            self._stream = None

    def _execute(self, shapes: str) -> None:
        self._must(self._context.execute_async_v3(int(self._stream)), f"it failed on {shapes}")

    def _copy(self, address: int, array: np.ndarray) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._did(self._cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def _fetch(self, array: np.ndarray, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._did(self._cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))
        self._did(self._cuda.cudaStreamSynchronize(self._stream))

    def _check_open(self) -> None:
        if self._engine is None:
            raise UsageError(f"{self._where} was closed. Open the bundle again.")

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise EngineError(f"{self._where} has {name} as {dtype}, which numpy cannot feed. Export the bundle again.")
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise EngineError(f"{self._where} wants {name} in host memory, which Segue does not support. Report it.")
        shape = tuple(f"{name}_{i}" if d < 0 else int(d) for i, d in enumerate(self._engine.get_tensor_shape(name)))
        return TensorSpec(name, _DTYPES[dtype], shape)

    def _profiles(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
        """Return the numbers of the profiles that fit all the shapes, each with the size of its largest inputs."""
        sizes: dict[int, int] = {}
        for index in range(self._engine.num_optimization_profiles):
            limits = {name: self._engine.get_tensor_profile_shape(name, index) for name in shapes}
            if all(covers(limits[name], shape) for name, shape in shapes.items()):
                sizes[index] = sum(math.prod(limits[name][2]) for name in shapes)
        return sizes

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the number of the tightest profile that fits all the shapes."""
        sizes = self._profiles(shapes)
        if not sizes:
            raise EngineError(
                f"{self._where} was not built for {', '.join(f'{name} {list(s)}' for name, s in shapes.items())}. "
                "Run segue build with --shapes for that size."
            )
        return min(sizes, key=lambda index: sizes[index])

    def _room(self, name: str, size: int) -> int:
        """Return the address of a device buffer of at least `size` bytes, kept under `name` for the next call."""
        size = max(size, 1)  # zero bytes need an address, too
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
        """Return the result of a CUDA call; raises SegueError if it failed."""
        status, *values = result
        if int(status) != 0:
            raise SegueError(
                f"CUDA failed in {self._where}: {status!r}, with {self._held()} bytes in its buffers. "
                "If memory ran out, choose a smaller size."
            )
        return values[0] if values else None


def covers(limits: tuple[Any, Any, Any], shape: tuple[int, ...]) -> bool:
    """Return whether `shape` lies between a profile's smallest and largest shape of an input."""
    lowest, _, highest = limits
    return len(lowest) == len(shape) and all(
        low <= side <= high for low, side, high in zip(lowest, shape, highest, strict=True)
    )


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingDependencyError(
            "engines need cuda-python, which is not installed. Run: pip install cuda-python"
        ) from None
    return runtime
