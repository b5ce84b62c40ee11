"""Segue: few-step diffusion checkpoints as engines that a desktop program can embed.

    import segue

    with segue.open("emoji") as model:
        image = model.generate("a red heart", seed=7)  # numpy uint8 [height, width, 3]

Importing this module loads nothing: numpy, ONNX Runtime and the rest arrive with the first name that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    BudgetError,
    BundleError,
    BusyError,
    Cancelled,
    CheckpointError,
    EngineError,
    MissingDependencyError,
    OutputError,
    ParityError,
    SegueError,
    TrainingError,
    UsageError,
)

if TYPE_CHECKING:
    from .runtime.animation import AnimationRequest, Event
    from .runtime.film import film
    from .runtime.image import read_metadata, write_png
    from .runtime.input_image import read_image
    from .runtime.pipeline import Model, Picture, Result, open_model
    from .runtime.plan import Plan
    from .runtime.provenance import Certificate
    from .runtime.queue import CancelToken, ModelQueue
    from .runtime.request import Request
    from .runtime.text import PromptTruncated
    from .runtime.tiles import Tiling

    __version__: str
    open = open_model  # an assignment is exported, an import by another name is not

__all__ = [  # without `open`, so that a star import leaves the builtin alone
    "AnimationRequest",
    "BudgetError",
    "BundleError",
    "BusyError",
    "CancelToken",
    "Cancelled",
    "Certificate",
    "CheckpointError",
    "EngineError",
    "Event",
    "MissingDependencyError",
    "Model",
    "ModelQueue",
    "OutputError",
    "ParityError",
    "Picture",
    "Plan",
    "PromptTruncated",
    "Request",
    "Result",
    "SegueError",
    "Tiling",
    "TrainingError",
    "UsageError",
    "__version__",
    "film",
    "read_image",
    "read_metadata",
    "write_png",
]

_LAZY = {
    "AnimationRequest": ("animation", "AnimationRequest"),
    "CancelToken": ("queue", "CancelToken"),
    "Certificate": ("provenance", "Certificate"),
    "Event": ("animation", "Event"),
    "Model": ("pipeline", "Model"),
    "ModelQueue": ("queue", "ModelQueue"),
    "Picture": ("pipeline", "Picture"),
    "Plan": ("plan", "Plan"),
    "PromptTruncated": ("text", "PromptTruncated"),
    "Request": ("request", "Request"),
    "Result": ("pipeline", "Result"),
    "Tiling": ("tiles", "Tiling"),
    "film": ("film", "film"),
    "open": ("pipeline", "open_model"),
    "read_image": ("input_image", "read_image"),
    "read_metadata": ("image", "read_metadata"),
    "write_png": ("image", "write_png"),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        module, attribute = _LAZY[name]
        value = getattr(importlib.import_module(f".runtime.{module}", __name__), attribute)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("segue")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "open"])
