"""What a graph can be run with: the names that commands take, and the packages behind them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import MissingDependencyError, UsageError
from .ort_providers import CPU, CUDA, RTX, TENSORRT


@dataclass(frozen=True)
class Target:
    """One way to run graphs. `compiled` says whether an engine is built of each graph before it can be used."""

    name: str
    module: str
    install: str  # the command that brings its package
    compiled: bool
    device: str  # "cpu" or "gpu"
    provider: str = ""  # ONNX Runtime's


TARGETS = {
    target.name: target
    for target in (
        Target("ort-cpu", "onnxruntime", "pip install onnxruntime", False, "cpu", CPU),
        Target(
            "ort-cuda", "onnxruntime",
            "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.31'", False, "gpu",
            CUDA,
        ),
        Target(
            "ort-tensorrt", "onnxruntime",
            "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.31' 'tensorrt-cu13<11'", False,
            "gpu", TENSORRT,
        ),
        Target(
            "ort-rtx", "onnxruntime_ep_nv_tensorrt_rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13", False,
            "gpu", RTX,
        ),
        Target("tensorrt-rtx", "tensorrt_rtx", "pip install '.[rtx]' in a clone of Segue", True, "gpu"),
        Target("tensorrt", "tensorrt", "pip install '.[tensorrt]' in a clone of Segue", True, "gpu"),
    )
}  # fmt: skip
DEFAULT = "ort-cpu"


def find_target(name: str) -> Target:
    """Return the target of that name; raises UsageError for another name."""
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}. Choose one of {', '.join(TARGETS)}.")
    return TARGETS[name]


def load(target: Target) -> Any:
    """Return the target's module; raises MissingDependencyError where it is absent or cannot be imported."""
    try:
        return import_module(target.module)
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise MissingDependencyError(
            f"the target {target.name} needs {target.module}, which {why}. Run: {target.install}"
        ) from None
