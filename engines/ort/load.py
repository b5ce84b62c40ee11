"""Where ONNX Runtime is imported: with its telemetry off, which its builds otherwise keep and send."""

from __future__ import annotations

import os
import sys
from typing import Any

_FATAL = 4  # of ONNX Runtime's levels: errors arrive as exceptions


def onnxruntime() -> Any:
    """Return the module; whoever wants its telemetry sets ORT_DISABLE_TELEMETRY=0."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    first = "onnxruntime" not in sys.modules
    import onnxruntime as module

    if first:  # CUDA's kernels warn past the sessions' own loggers; who has imported it before us has had a choice
        module.set_default_logger_severity(_FATAL)
    return module
