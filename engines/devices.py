"""The NVIDIA GPUs of this machine and their driver. Reading them does not change a GPU's state."""

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

    A GPU without memory of its own, as on DGX Spark, has the machine's memory.
    """

    name: str
    capability: int
    memory: int


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: its version and GPUs. The version is empty without a driver; `why` gives the reason.

    The first GPU is CUDA's device 0 if cuda-python is installed, else the first one on the bus.
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
        return Driver(version, tuple(found), "" if found else "the driver describes no GPU")
    except Exception as error:
        return Driver("", (), f"NVIDIA's management library does not answer ({error})")
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


@dataclass(frozen=True)
class DeviceMemory:
    """Free bytes of the first GPU, and the bytes that all processes use.

    The driver reports a process's own use only once it has a context, and never in a container.
    """

    free: int
    used: int


def memory() -> DeviceMemory | None:
    """Return the memory of CUDA's device 0, or of the first GPU on the bus without cuda-python; never raises.

    Returns None without a GPU that has memory of its own.
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
    except Exception:  # a broken GPU does not hide the others
        return None
    try:
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except Exception:  # not supported by a GPU that uses the machine's memory
        memory = psutil.virtual_memory().total
    return Gpu(name, 10 * major + minor, memory)


def _first(pynvml: Any) -> Gpu | None:
    """Return CUDA's device 0, or the first GPU on the bus; None if neither is known."""
    try:
        return _gpu(pynvml, _handle(pynvml))
    except Exception:  # for example, CUDA_VISIBLE_DEVICES is empty
        return None


def _handle(pynvml: Any) -> Any:
    """Return NVML's handle of CUDA's device 0, which heeds CUDA_VISIBLE_DEVICES and orders by speed.

    If cuda-python is absent, or the driver does not answer it, this is the first GPU on the bus.
    """
    with contextlib.suppress(Exception):
        from cuda.bindings import driver as cuda

        cuda.cuInit(0)  # not CUDA's runtime, which makes a context of about 490 MiB
        status, device = cuda.cuDeviceGet(0)
        if int(status) == 0:
            status, place = cuda.cuDeviceGetPCIBusId(32, device)
            return pynvml.nvmlDeviceGetHandleByPciBusId(place.rstrip(b"\0"))
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def library(name: str) -> str:
    """Return an empty string if the shared library `name` loads, else the error."""
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
