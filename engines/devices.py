"""The NVIDIA GPUs of this machine and their driver, asked without CUDA and without touching a GPU's state."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, tenfold compute capability (89 is 8.9) and memory in bytes."""

    name: str
    capability: int
    memory: int


@dataclass(frozen=True)
class Driver:
    """What NVIDIA's driver says: its version (empty: there is none, `why` says so) and the GPUs, in its order."""

    version: str
    gpus: tuple[Gpu, ...]
    why: str = ""


def driver() -> Driver:
    """Return the driver and its GPUs; never raises."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except Exception as error:  # NVMLError, or OSError of a broken library
        return Driver("", (), f"NVIDIA's management library does not start ({error})")
    try:
        version = _text(pynvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append(Gpu(_text(pynvml.nvmlDeviceGetName(handle)), 10 * major + minor, memory))
        return Driver(version, tuple(found), "" if found else "the driver sees no GPU")
    except Exception as error:
        return Driver("", (), f"NVIDIA's management library does not answer ({error})")
    finally:
        pynvml.nvmlShutdown()


def library(name: str) -> str:
    """Return an empty text if the shared library `name` can be loaded, else why it cannot."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    return ""


def cuda_library() -> str:
    """Return the file name of the driver's CUDA library here."""
    return "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
