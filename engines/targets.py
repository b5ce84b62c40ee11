"""The targets that run graphs: the names that commands take, and the packages behind them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import MissingDependencyError, UsageError
from .ort.load import onnxruntime
from .ort.providers import CPU, CUDA, RTX, TENSORRT


@dataclass(frozen=True)
class Target:
    """One way to run graphs. A `compiled` target needs an engine of each graph, built beforehand.

    `oldest` is the first version, major and minor, that has every function that Segue calls; (0, 0) if all versions do.
    """

    name: str
    module: str
    install: str  # the command that installs its package
    compiled: bool
    device: str  # "cpu" or "gpu"
    provider: str = ""  # ONNX Runtime's
    oldest: tuple[int, int] = (0, 0)
    planned: bool = False  # whether Segue plans a request's memory and keeps a budget


# onnxruntime and onnxruntime-gpu have separate releases: onnxruntime-gpu has no 1.32 yet
_ORT_GPU = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.31,<1.34'"

TARGETS = {
    target.name: target
    for target in (
        Target("ort-cpu", "onnxruntime", "pip install onnxruntime", False, "cpu", CPU, planned=True),
        Target("ort-cuda", "onnxruntime", _ORT_GPU, False, "gpu", CUDA, planned=True),
        Target("ort-tensorrt", "onnxruntime", f"{_ORT_GPU} 'tensorrt-cu13<11'", False, "gpu", TENSORRT),
        Target(
            "ort-rtx", "onnxruntime_ep_nv_tensorrt_rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13", False,
            "gpu", RTX,
        ),
        Target("tensorrt-rtx", "tensorrt_rtx", "pip install '.[rtx]' in a clone of Segue", True, "gpu"),
        Target(
            "tensorrt", "tensorrt", "pip install '.[tensorrt]' in a clone of Segue", True, "gpu",
            oldest=(10, 14),  # older ones have no attention in parser and network
        ),
    )
}  # fmt: skip
DEFAULT = "ort-cpu"


def find_target(name: str) -> Target:
    """Return the target of that name; raises UsageError for an unknown name."""
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}. Choose one of {', '.join(TARGETS)}.")
    return TARGETS[name]


def load(target: Target) -> Any:
    """Return the target's module; raises MissingDependencyError if it is absent, too old or cannot be imported."""
    try:
        module = onnxruntime() if target.module == "onnxruntime" else import_module(target.module)
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise MissingDependencyError(
            f"the target {target.name} needs {target.module}, which {why}.", f"Run: {target.install}"
        ) from None
    if target.oldest > (0, 0) and _version(module) < target.oldest:
        raise MissingDependencyError(
            f"the target {target.name} needs {target.module} {'.'.join(map(str, target.oldest))} or newer, got "
            f"{module.__version__}.",
            f"Run: {target.install}",
        )
    return module


def _version(module: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
