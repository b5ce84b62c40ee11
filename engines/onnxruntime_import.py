"""Where ONNX Runtime is imported: with its telemetry off, which its builds otherwise keep and send."""

from __future__ import annotations

import os
from typing import Any


def onnxruntime() -> Any:
    """Return the module; whoever wants its telemetry sets ORT_DISABLE_TELEMETRY=0."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as module

    module.set_default_logger_severity(4)
    return module
