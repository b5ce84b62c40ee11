"""The NVIDIA GPUs of this machine and their driver, asked without touching a GPU's state."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, tenfold compute capability (89 is 8.9) and memory in bytes.

    Where it has no memory of its own, as on DGX Spark, that is the machine's.
    """

    name: str
    capability: int
    memory: int


@dataclass(frozen=True)
class Driver:
    """What NVIDIA's driver says: its version (empty: there is none, `why` says so) and the GPUs.

    The first GPU is CUDA's device 0 where cuda-python is installed; else the first one by its place on the bus.
    """

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
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        found = [gpu for handle in handles if (gpu := _gpu(pynvml, handle)) is not None]
        first = _first(pynvml)
        if first is not None:
            found.sort(key=lambda gpu: gpu != first)
        return Driver(version, tuple(found), "" if found else "the driver sees no GPU that it describes")
    except Exception as error:
        return Driver("", (), f"NVIDIA's management library does not answer ({error})")
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of the first GPU: those that nobody takes, and those that all processes take.

    What one process takes the driver tells only once it has a context, and in a container not at all.
    """

    free: int
    used: int


def memory() -> DeviceMemory | None:
    """Return the memory of CUDA's device 0, or of the first GPU on the bus without cuda-python; never raises.

    It is None where there is no GPU, or none with a memory of its own.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        found = pynvml.nvmlDeviceGetMemoryInfo(_handle(pynvml))
        return DeviceMemory(int(found.free), int(found.used))
    except Exception:
        return None
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _gpu(pynvml: Any, handle: Any) -> Gpu | None:
    try:
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        name = _text(pynvml.nvmlDeviceGetName(handle))
    except Exception:  # one that is broken does not hide the others
        return None
    try:
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except Exception:  # not supported where the memory is the machine's
        memory = psutil.virtual_memory().total
    return Gpu(name, 10 * major + minor, memory)


def _first(pynvml: Any) -> Gpu | None:
    """Return CUDA's device 0, or the first GPU on the bus; None where neither is known."""
    try:
        return _gpu(pynvml, _handle(pynvml))
    except Exception:  # as where CUDA_VISIBLE_DEVICES is empty
        return None


def _handle(pynvml: Any) -> Any:
    """Return NVML's handle of CUDA's device 0, which heeds CUDA_VISIBLE_DEVICES and orders by speed.

    Without cuda-python, or with a driver that does not answer it, that of the first GPU on the bus.
    """
    with contextlib.suppress(Exception):
        from cuda.bindings import driver as cuda

        cuda.cuInit(0)  # and nothing of CUDA's runtime, which makes a context of some 490 MiB
        status, device = cuda.cuDeviceGet(0)
        if int(status) == 0:
            status, place = cuda.cuDeviceGetPCIBusId(32, device)
            return pynvml.nvmlDeviceGetHandleByPciBusId(place.rstrip(b"\0"))
    return pynvml.nvmlDeviceGetHandleByIndex(0)


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
