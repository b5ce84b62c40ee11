"""ONNX Runtime, on the CPU or with another provider."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ...errors import BudgetError, BundleError, EngineError, SegueError, UsageError
from ..base import Array, Closing, Resident, TensorSpec, fit_feeds
from ..process import ran_out
from . import arena
from .load import onnxruntime as import_onnxruntime
from .providers import CPU, CUDA, choose

MAX_THREADS = 256
_SILENT = 4  # ONNX Runtime's FATAL: each error that it logs also arrives as an exception
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def default_threads() -> int:
    """Return the number of cores that this process may use (not hyper-threads), at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def check_threads(threads: int | None) -> None:
    """Raise UsageError unless `threads` is None or a whole number from 1 to MAX_THREADS."""
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
        raise UsageError(f"threads must be from 1 to {MAX_THREADS}, got {threads!r}. Leave it out for one per core.")


class OrtResident(Resident):
    """An OrtValue."""

    def __init__(self, value: Any) -> None:
        super().__init__(tuple(value.shape()), np.dtype(_DTYPES[value.data_type()]))
        self.value = value

    def numpy(self) -> np.ndarray:
        """Return a copy on the host."""
        return np.array(self.value.numpy())

    def close(self) -> None:
        """Drop the value; ONNX Runtime frees it with its last owner."""
        self.value = None


class OrtEngine(Closing):
    """An `Engine` that runs an ONNX file with one of ONNX Runtime's providers.

    `threads` is the number of threads of one call (None: `default_threads()`). `settings` are the provider's options
    (`providers.provider_options`). ONNX Runtime reads the file's external data from the file's directory. First check
    that the data stays there, as `runtime.bundle.reader` does.

    On the processor all engines share one arena. Without `pooled` each array of a call is allocated and freed by
    itself; with `heap.give_back` the process then holds only the memory in use. On a GPU each engine has its own arena,
    and without `pooled` it shrinks after every call.

    Raises BundleError if ONNX Runtime cannot load the graph, BudgetError if memory runs out, UsageError for a wrong
    number of threads, and EngineError if ONNX Runtime would silently use another provider.
    """

    def __init__(
        self, graph: Path, threads: int | None = None, provider: str = CPU, settings: Mapping[str, str] | None = None,
        pooled: bool = True,
    ) -> None:  # fmt: skip
        onnxruntime = import_onnxruntime()

        check_threads(threads)
        self._where = f"the graph {graph.name} in {graph.parent}"
        self._device = "cpu" if provider == CPU else "cuda"
        self._shares = pooled and provider == CPU
        self._run_options = None if pooled or provider != CUDA else _shrinking(onnxruntime)
        options = _options(onnxruntime, threads or default_threads(), pooled, provider)
        try:
            chosen = choose(onnxruntime, options, provider, settings or {})
            if self._shares:
                arena.share(onnxruntime, options)
            if provider == CUDA:  # weights outside the arena: they must not fragment it
                options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
            # Without a fallback: if a provider fails, ONNX Runtime would print to stdout and use another one
            self._session: Any = onnxruntime.InferenceSession(
                os.fspath(graph),
                options,
                providers=chosen,
                enable_fallback=0,
                disabled_optimizers=["ConstantFolding"] if provider == CUDA else [],
            )
        except SegueError:
            raise
        except Exception as error:  # the bindings raise a dozen types, all derived only from Exception
            if ran_out(error):
                raise _no_memory(f"{self._where} was loaded", error) from error
            what = f"ONNX Runtime {onnxruntime.__version__} cannot load {self._where}"
            if provider != CPU:
                raise EngineError(
                    f"{what} with {provider}: {_first_line(error)} Run segue doctor to see what is missing, or use the "
                    "target ort-cpu."
                ) from error
            raise BundleError(
                f"{what}: {_first_line(error)} Run segue verify on the bundle, or export it again."
            ) from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        if self.providers[:1] != (provider,):  # a provider that is compiled in may still not load
            raise EngineError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run {self._where} with {provider}; it would use "
                f"{self.providers[0]}. Run segue doctor to see what is missing, or use the target ort-cpu."
            )
        self.inputs = tuple(self._spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(self._spec(value) for value in self._session.get_outputs())

    @property
    def device_bytes(self) -> int | None:
        """Return None: ONNX Runtime does not report the memory of one session."""
        return None

    def run(self, feeds: Mapping[str, Array], keep: Collection[str] = ()) -> dict[str, Any]:
        """Run the graph once; see `Engine.run`."""
        self._check_open()
        fitted = fit_feeds(self.inputs, feeds, self._where)
        if self._shares:
            arena.take(import_onnxruntime(), (id(self), *(array.shape for array in fitted.values())))
        try:
            return self._run(fitted, keep)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in fitted.items())
            if ran_out(error):
                raise _no_memory(f"{self._where} ran on {shapes}", error) from error
            raise SegueError(
                f"ONNX Runtime failed in {self._where} on {shapes}: {_first_line(error)} Run segue verify on the "
                "bundle."
            ) from error

    def put(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Resident]:
        """Copy arrays to the device; see `Engine`."""
        onnxruntime = import_onnxruntime()

        self._check_open()
        fitted = fit_feeds(tuple(spec for spec in self.inputs if spec.name in feeds), feeds, self._where)
        try:
            return {
                name: OrtResident(onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device))
                for name, array in fitted.items()
            }
        except Exception as error:
            if ran_out(error):
                raise _no_memory(f"{', '.join(fitted)} were copied to the device", error) from error
            raise SegueError(
                f"ONNX Runtime cannot copy {', '.join(fitted)} for {self._where} to the device: {_first_line(error)} "
                "Run segue doctor."
            ) from error

    def _run(self, fitted: Mapping[str, Array], keep: Collection[str]) -> dict[str, Any]:
        resident = {name: array for name, array in fitted.items() if isinstance(array, OrtResident)}
        if not resident and not keep:
            values = self._session.run(None, dict(fitted), self._run_options)
            return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}
        binding = self._session.io_binding()
        for name, array in fitted.items():
            if name in resident:
                binding.bind_ortvalue_input(name, resident[name].value)
            else:
                binding.bind_cpu_input(name, array)
        for spec in self.outputs:
            binding.bind_output(spec.name, self._device if spec.name in keep else "cpu")
        self._session.run_with_iobinding(binding, self._run_options)
        made = dict(zip((spec.name for spec in self.outputs), binding.get_outputs(), strict=True))
        return {name: OrtResident(value) if name in keep else value.numpy() for name, value in made.items()}

    def _check_open(self) -> None:
        if self._session is None:
            raise UsageError(f"{self._where} was closed. Open the bundle again.")

    def close(self) -> None:
        """Free the session and its weights. Closing twice is allowed."""
        if self._session is not None:
            onnxruntime = import_onnxruntime()

            self._session = None
            arena.shrink(onnxruntime)

    def _spec(self, value: Any) -> TensorSpec:
        if value.type not in _DTYPES:
            raise BundleError(
                f"{self._where} has {value.name} of type {value.type}, which numpy cannot feed. "
                "Export the bundle again with --precision fp16 or fp32."
            )
        # ONNX Runtime gives None for a dimension without a name; each such dimension is free
        shape = tuple(f"{value.name}_{i}" if dim is None else dim for i, dim in enumerate(value.shape))
        return TensorSpec(value.name, _DTYPES[value.type], shape)


def _options(onnxruntime: Any, threads: int, pooled: bool, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = pooled
    # On a processor a pattern costs memory, because its block is added to the arena's regions, and saves no time
    options.enable_mem_pattern = pooled and provider != CPU
    # One component runs at a time: waiting threads of the others must not spin
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads >= default_threads() * 2:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without this, a flatbuffer in ONNX Runtime's own format would bypass our external-data check
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _shrinking(onnxruntime: Any) -> Any:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
    return options


def _no_memory(when: str, error: Exception) -> BudgetError:
    return BudgetError(f"memory ran out while {when}: {_first_line(error)} Ask for a smaller size, or free memory.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:400]
