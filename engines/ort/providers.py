"""ONNX Runtime's providers: the options of each, and the registration of the plugin."""

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
RTX = "NvTensorRTRTXExecutionProvider"  # a plugin, registered once in a process
_REGISTERING = threading.Lock()
COMPILING = {TENSORRT: "trt", RTX: "nv"}  # build engines when a graph is loaded; the prefix of their options
# Algorithms are chosen by rule, because timed choices, and so the pictures, would differ from run to run. The arena
# grows by the requested size, not to the next power of two
_CUDA = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}


def provider_options(provider: str, profile: Profile, precision: str, wide: bool = False) -> dict[str, str]:
    """Return the options of a provider for a graph whose inputs have shapes within `profile`.

    TensorRT's provider keeps no engines on disk, because it would load them without our checks. Its networks are weakly
    typed: an fp16 graph runs in fp32 unless fp16 is enabled, and then fp16 may be used everywhere. So fp16 is off for a
    `wide` graph, which computes partly in fp32. Raises EngineError for "fp8", which this provider does not support.
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
                "the target ort-tensorrt does not support fp8. Use the target tensorrt, tensorrt-rtx or ort-rtx."
            )
        kinds = {"fp16": ("fp16", "w8a8"), "bf16": ("bf16",), "int8": ("w8a8",)}
        found |= {f"trt_{kind}_enable": str(int(precision in of and not wide)) for kind, of in kinds.items()}
    return found


def cuda_options(limit: int | None) -> dict[str, str]:
    """Return the options of CUDA's provider; `limit` bounds the bytes of a session's weights and arrays."""
    return _CUDA if limit is None else _CUDA | {"gpu_mem_limit": str(limit), "cudnn_conv_use_max_workspace": "0"}


def preload(onnxruntime: Any, provider: str) -> None:
    """Load a provider's libraries from pip's folders, where no loader looks; never raises."""
    if provider != CPU and hasattr(onnxruntime, "preload_dlls"):
        # The session reports failures; preload_dlls would print them into the output of --json
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if provider == TENSORRT:
        with contextlib.suppress(Exception):
            import_module("tensorrt")


def choose(onnxruntime: Any, options: Any, provider: str, settings: Mapping[str, str]) -> Sequence[Any]:
    """Return the list of providers for a session, or put a plugin's devices into its `options`."""
    if provider != RTX and provider not in onnxruntime.get_available_providers():
        raise MissingDependencyError(
            f"onnxruntime {onnxruntime.__version__} is built without {provider}. Run segue doctor to see what "
            "to install."
        )
    preload(onnxruntime, provider)
    if provider == RTX:
        options.add_provider_for_devices(rtx_devices(onnxruntime), dict(settings))
        return []
    return [(provider, dict(settings)), *([CUDA] if provider == TENSORRT else [])]


def rtx_devices(onnxruntime: Any) -> list[Any]:
    """Return the GPU that the RTX plugin runs on; registers the plugin first.

    Raises MissingDependencyError without the plugin, and EngineError if it does not load or supports no GPU here.
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
