"""The device and precision of training: one CUDA GPU if there is one, else the processor."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import TrainingError


def training_device() -> torch.device:
    """Return the device of networks and data. Random numbers always come from the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: bf16 on CUDA and on processors with bf16 instructions, else fp32.

    AVX512-BF16 and AMX are twice as fast as fp32. Without them bf16 is many times slower.
    """
    capable = device.type == "cuda" or any(
        torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")
    )
    return torch.bfloat16 if capable else torch.float32


def check_compiler() -> None:
    """Raise TrainingError if the C++ compiler for torch.compile is missing."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise TrainingError(
            f"compile = true needs the C++ compiler {name}, which is not installed. Install it with Python's headers "
            "(Debian: apt install g++ python3-dev), or take compile out of the recipe."
        )


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context for calls of the network: autocast to `fast_dtype`, or nothing for fp32.

    Losses stay outside it. Each block casts the weights again, so blocks with and without gradient share no cast.
    """
    if fast_dtype(device) == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, fast_dtype(device))


def quiet_libraries() -> None:
    """Silence warnings, logs and progress bars of diffusers and transformers, which would disturb Segue's own."""
    import warnings

    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for library in (of_diffusers, of_transformers):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|torchmetrics|peft|huggingface_hub)\b")


@contextlib.contextmanager
def plain_attention(device: torch.device) -> Iterator[None]:
    """Use matrix products for attention on a processor. A GPU keeps its fused kernels.

    The processor's fused backward pass takes 3 times as long on short sequences (measured: 88 tokens, bf16).
    """
    if device.type == "cuda":
        yield
        return
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
