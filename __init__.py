"""Segue: few-step diffusion checkpoints as engines that a desktop program can embed.

    import segue

    with segue.open("emoji") as model:
        image = model.generate("a red heart", seed=7)  # numpy uint8 [height, width, 3]

Importing this module loads no other package. The first name that needs numpy or ONNX Runtime loads it.
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
    from .runtime.bundle.tokens import PromptTruncated
    from .runtime.film import film
    from .runtime.media.png import read_metadata, write_png
    from .runtime.media.provenance import Certificate
    from .runtime.media.read_image import read_image, read_mask
    from .runtime.notices import Notice
    from .runtime.pipeline import Model, Picture, Result, open_model
    from .runtime.planning.pictures import Plan
    from .runtime.queue import CancelToken, ModelQueue
    from .runtime.request import Request
    from .runtime.sampling.tiles import Tiling
    from .runtime.videos.request import AnimationRequest
    from .runtime.videos.stage_one import Event

    __version__: str
    open = open_model  # type checkers export an assignment, but not an import under another name

__all__ = [  # without `open`, so that a star import keeps the builtin
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
    "Notice",
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
    "read_mask",
    "read_metadata",
    "write_png",
]

_LAZY = {
    "AnimationRequest": ("videos.request", "AnimationRequest"),
    "CancelToken": ("queue", "CancelToken"),
    "Certificate": ("media.provenance", "Certificate"),
    "Event": ("videos.stage_one", "Event"),
    "Model": ("pipeline", "Model"),
    "ModelQueue": ("queue", "ModelQueue"),
    "Notice": ("notices", "Notice"),
    "Picture": ("pipeline", "Picture"),
    "Plan": ("planning.pictures", "Plan"),
    "PromptTruncated": ("bundle.tokens", "PromptTruncated"),
    "Request": ("request", "Request"),
    "Result": ("pipeline", "Result"),
    "Tiling": ("sampling.tiles", "Tiling"),
    "film": ("film", "film"),
    "open": ("pipeline", "open_model"),
    "read_image": ("media.read_image", "read_image"),
    "read_mask": ("media.read_image", "read_mask"),
    "read_metadata": ("media.png", "read_metadata"),
    "write_png": ("media.png", "write_png"),
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
