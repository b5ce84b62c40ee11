"""Where training runs: one CUDA GPU if there is one, else the processor."""

from __future__ import annotations

import contextlib

import torch


def training_device() -> torch.device:
    """Return the device of networks and data; random numbers are always drawn on the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context for calls of the network in training: bf16 autocast on CUDA, nothing elsewhere.

    Losses stay outside it. Weights are cast anew in each block, so one without gradient never serves one with it.
    """
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
