"""The machines that a plan can be for: their published figures, and the figures of this machine."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, replace
from importlib.resources import files

import psutil

from ...engines import devices
from ...engines.ort.engine import default_threads
from ...errors import EngineError, UsageError

CPU, THIS = "cpu", "this"
SHARE = 0.5  # share of a published rate that a network reaches
CORE_FLOPS = 4e10  # fp32 operations a second of ONNX Runtime on one core (AVX2, measured: 3 to 6e10)
GPU_READS = 1.2e9  # bytes of weights a second that its sessions load onto a GPU (measured: 1.2 to 1.5e9, H100)
CORE_READS = 2e8  # bytes of weights a second that it loads and converts from fp16 to fp32 (measured on NVMe)


@dataclass(frozen=True)
class Machine:
    """A machine: bytes of memory, operations a second, and bytes of weights loaded a second.

    `moves` is the bytes of arrays a second between host and GPU. `threads` is the threads of a session on a processor.
    """

    name: str
    kind: str  # "gpu" or "cpu"
    memory: int
    flops: float
    loads: float
    moves: float = math.inf
    capability: int = 0  # compute capability times ten: 89 for 8.9
    threads: int = 0
    names: tuple[str, ...] = ()  # exactly as NVIDIA's driver reports them: a laptop GPU is another machine


@functools.cache
def published() -> dict[str, Machine]:
    """Return the GPUs of `hardware.json` by name."""
    table = json.loads(files(__package__).joinpath("hardware.json").read_text(encoding="utf-8"))
    return {
        name: Machine(
            row["title"],
            row["kind"],
            row["memory"] * 2**30,
            SHARE * 1e12 * row["tflops"],
            GPU_READS,
            SHARE * 1e9 * row["link"],
            row["capability"],
            names=tuple(row["names"]),
        )
        for name, row in table.items()
    }


def gpu_here() -> Machine:
    """Return the first GPU of this machine; an unknown GPU gets the rates of the slowest known one.

    Raises EngineError if there is no GPU.
    """
    found, known = devices.driver(), published().values()
    for gpu in found.gpus[:1]:
        like = next((machine for machine in known if gpu.name in machine.names), None)
        like = like or replace(min(known, key=lambda machine: machine.flops), name=gpu.name)
        return replace(like, memory=gpu.memory)
    raise EngineError(
        f"a plan for this machine's GPU needs one: {found.why}. Use the target ort-cpu, or segue plan --device."
    )


def find_machine(name: str, threads: int | None = None) -> Machine:
    """Return a machine by its name in `hardware.json`, "cpu" for this machine's processor, or "this".

    "this" is `gpu_here` if there is a GPU, else the processor. Raises UsageError for another name.
    """
    known = published()
    if name in known:
        return known[name]
    if name == THIS and devices.driver().gpus:
        return gpu_here()
    if name not in (CPU, THIS):
        raise UsageError(f"the machine {name!r} is unknown. Choose one of {', '.join((*known, CPU, THIS))}.")
    cores = threads or default_threads()
    memory = int(psutil.virtual_memory().total)
    return Machine("this processor", CPU, memory, cores * CORE_FLOPS, CORE_READS, threads=cores)
