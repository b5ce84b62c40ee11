"""Import ONNX Runtime with its telemetry off. By default its builds record and send telemetry."""

from __future__ import annotations

import os
import sys
from typing import Any

_FATAL = 4  # of ONNX Runtime's levels: errors arrive as exceptions


def onnxruntime() -> Any:
    """Return the module. ORT_DISABLE_TELEMETRY=0 keeps its telemetry on."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    first = "onnxruntime" not in sys.modules
    import onnxruntime as module

    if first:  # CUDA's kernels warn past the sessions' loggers. A program that imported it first chose its own level
        module.set_default_logger_severity(_FATAL)
    return module
