"""ONNX Runtime's providers: what each wants to be told, and how the one that comes as a plugin is registered."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from ..errors import MissingDependencyError
from .base import Profile

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"  # a plugin; it is registered once a process
COMPILING = {TENSORRT: "trt", RTX: "nv"}  # build engines when a graph is loaded; the prefix of their options


def provider_options(provider: str, profile: Profile, precision: str) -> dict[str, str]:
    """Return the options of a provider for a graph whose inputs have shapes within `profile`.

    Engines that TensorRT's provider would keep on disk are loaded without a check of ours, so it keeps none.
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
    if provider == TENSORRT:  # its networks are weakly typed: without these fp16 graphs would run in fp32
        found |= {"trt_fp16_enable": str(int(precision == "fp16")), "trt_bf16_enable": str(int(precision == "bf16"))}
    return found


def choose(onnxruntime: Any, options: Any, provider: str, settings: Mapping[str, str]) -> Sequence[Any]:
    """Return the list of providers for a session, or put a plugin's devices into its `options`."""
    if provider != CPU and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.suppress(Exception):  # the session says whether it went well
            onnxruntime.preload_dlls()  # CUDA and cuDNN as pip installs them are on no loader's path
    if provider == TENSORRT:
        with contextlib.suppress(Exception):
            import_module("tensorrt")  # so that its libraries are loaded
    if provider == RTX:
        options.add_provider_for_devices(rtx_devices(onnxruntime), dict(settings))
        return []
    return [(provider, dict(settings)), *([CUDA] if provider == TENSORRT else [])]


def rtx_devices(onnxruntime: Any) -> list[Any]:
    """Return the GPUs that the RTX plugin runs on, registered if need be; raises where there are none."""

    def known() -> list[Any]:
        return [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX]

    found = known()
    if not found:
        try:
            import onnxruntime_ep_nv_tensorrt_rtx as plugin
        except ImportError:
            raise MissingDependencyError(
                "the target ort-rtx needs onnxruntime-ep-nv-tensorrt-rtx-cu13, which is not installed. "
                "Run: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
            ) from None
        onnxruntime.register_execution_provider_library(RTX, plugin.get_library_path())
        found = known()
    if not found:
        raise RuntimeError("TensorRT-RTX's plugin finds no GPU that it supports")
    return found[:1]
