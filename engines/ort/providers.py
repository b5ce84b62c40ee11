"""ONNX Runtime's providers: what each wants to be told, and how the one that comes as a plugin is registered."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from ..base import Profile

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"  # a plugin; it is registered once a process
_REGISTERING = threading.Lock()
COMPILING = {TENSORRT: "trt", RTX: "nv"}  # build engines when a graph is loaded; the prefix of their options
# Algorithms chosen by rule: what is timed at the first call differs from run to run, and so would pictures. An arena
# that grows by what is asked for holds what is needed, and not the next power of two
_CUDA = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}


def provider_options(provider: str, profile: Profile, precision: str, wide: bool = False) -> dict[str, str]:
    """Return the options of a provider for a graph whose inputs have shapes within `profile`.

    Engines that TensorRT's provider would keep on disk are loaded without a check of ours, so it keeps none. Its
    networks are weakly typed: a graph of fp16 runs in fp32 unless it may use fp16, and then it may do so everywhere.
    A `wide` graph, which computes in fp32 in places, may not. Raises EngineError for "fp8", which it does not do.
    """
    prefix = COMPILING.get(provider)
    if prefix is None:
        return {}
    levels = ("min", "opt", "max")
    found = {
        f"{prefix}_profile_{level}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, shapes[number]))}" for name, shapes in profile.items()
        )
        for number, level in enumerate(levels)
    }
    if provider == TENSORRT:
        if precision == "fp8":
            raise EngineError(
                "the target ort-tensorrt does not run fp8. Use the target tensorrt, tensorrt-rtx or ort-rtx."
            )
        kinds = {"fp16": ("fp16", "w8a8"), "bf16": ("bf16",), "int8": ("w8a8",)}
        found |= {f"trt_{kind}_enable": str(int(precision in of and not wide)) for kind, of in kinds.items()}
    return found


def cuda_options(limit: int | None) -> dict[str, str]:
    """Return the options of CUDA's provider; a session's weights and arrays take no more than `limit` bytes there."""
    return _CUDA if limit is None else _CUDA | {"gpu_mem_limit": str(limit), "cudnn_conv_use_max_workspace": "0"}


def preload(onnxruntime: Any, provider: str) -> None:
    """Load the libraries that a provider needs from where pip puts them, which is on no loader's path; never raises."""
    if provider != CPU and hasattr(onnxruntime, "preload_dlls"):
        # The session says whether it went well; this prints what is missing, into the answers of --json
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if provider == TENSORRT:
        with contextlib.suppress(Exception):
            import_module("tensorrt")


def choose(onnxruntime: Any, options: Any, provider: str, settings: Mapping[str, str]) -> Sequence[Any]:
    """Return the list of providers for a session, or put a plugin's devices into its `options`."""
    if provider != RTX and provider not in onnxruntime.get_available_providers():
        raise MissingDependencyError(
            f"onnxruntime {onnxruntime.__version__} is built without {provider}. Run segue doctor: it says what to "
            "install."
        )
    preload(onnxruntime, provider)
    if provider == RTX:
        options.add_provider_for_devices(rtx_devices(onnxruntime), dict(settings))
        return []
    return [(provider, dict(settings)), *([CUDA] if provider == TENSORRT else [])]


def rtx_devices(onnxruntime: Any) -> list[Any]:
    """Return the GPU that the RTX plugin runs on, registered if need be.

    Raises EngineError where there is none or the plugin does not load, MissingDependencyError without it.
    """

    def known() -> list[Any]:
        return [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX]

    with _REGISTERING:
        found = known()
        if not found:
            try:
                import onnxruntime_ep_nv_tensorrt_rtx as plugin
            except ImportError:
                raise MissingDependencyError(
                    "the target ort-rtx needs onnxruntime-ep-nv-tensorrt-rtx-cu13, which is not installed. "
                    "Run: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
                ) from None
            try:
                onnxruntime.register_execution_provider_library(RTX, plugin.get_library_path())
            except Exception as error:  # of the loader, or of ONNX Runtime's bindings
                raise EngineError(
                    f"TensorRT-RTX's plugin for ONNX Runtime does not load: {error} Run segue doctor, or use ort-cpu."
                ) from error
            found = known()
    if not found:
        raise EngineError(
            "TensorRT-RTX's plugin for ONNX Runtime finds no GPU that it supports. Run segue doctor, or use ort-cpu."
        )
    return found[:1]
