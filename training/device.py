"""Where training runs: one CUDA GPU if there is one, else the processor."""

from __future__ import annotations

import torch


def training_device() -> torch.device:
    """Return the device of networks and data; random numbers are always drawn on the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
