"""Find out which targets work on this machine, and why others do not, without running anything.

No deserialiser of engines is called, because without a driver it can end the process.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from ...engines import devices, targets
from ...engines.ort.engine import default_threads
from ...engines.ort.load import onnxruntime
from ...engines.ort.providers import CUDA, RTX, TENSORRT, preload, rtx_devices
from ...engines.tensorrt.build import CAPABILITIES
from ...errors import MissingDependencyError, OutputError, SegueError, UsageError
from ..bundle.reader import Bundle
from ..engine_cache import store
from ..engine_cache.find import find_engine
from ..storage.files import check_writable
from ..storage.paths import cache_directory

OK, NOTE, FAULT = "ok", "note", "fault"
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# Libraries that the CUDA provider of onnxruntime-gpu 1.31.1 loads beside the driver; its wheel is built for CUDA 13 and
# cuDNN 9. The first four are in its ELF header. The last two are not: without them it can load and fail later.
LIBRARIES = (
    "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcufft.so.12", "libcudnn.so.9",
)  # fmt: skip
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")  # the TensorRT provider needs these, too
PLUGIN_CAPABILITIES = (86, 89, 120, 121)  # of TensorRT-RTX's plugin 0.5 for ONNX Runtime
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm")


@dataclass(frozen=True)
class Finding:
    """The result of one check. `state`: "ok", "note" (no action is needed) or "fault"."""

    subject: str
    state: str
    text: str
    hint: str = ""


def examine(bundle: Bundle | None = None) -> list[Finding]:
    """Return findings about this machine, and about `bundle` on it; never raises for missing software."""
    driver = devices.driver()
    found = [_processor(), _memory(), _runtimes(), *_driver(driver)]
    usable = {}
    for target in targets.TARGETS.values():
        finding = _target(target, driver)
        usable[target.name] = finding.state == OK
        found.append(finding)
    found.append(_cache())
    if bundle is not None:
        found += [_fit(bundle, target, driver) for target in targets.TARGETS.values() if usable[target.name]]
    return found


def verdict(found: Iterable[Finding], bundle: str = "") -> str:
    """Return the findings in one sentence: the targets that run here, and whether the bundle of that name does."""
    states = {finding.subject: finding.state for finding in found}
    here = [name.removeprefix("target ") for name in states if name.startswith("target ") and states[name] == OK]
    if not here:
        return "This machine runs no bundle yet. See the table for what is missing."
    told = f"This machine runs {', '.join(here)}."
    if not bundle:
        return f"{told} The shipped bundles need no more than ort-cpu."
    fits = [target for target in here if states.get(f"{bundle} on {target}") == OK]
    return f"{told} {bundle} runs on {', '.join(fits)}." if fits else f"{told} {bundle} does not fit: see the table."


def _processor() -> Finding:
    flags: set[str] = set()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.partition(":")[0].strip() in ("flags", "Features"):
                flags = set(line.partition(":")[2].split())
                break
    known = [feature for feature in FEATURES if feature in flags]
    text = f"{platform.machine()}, {default_threads()} cores, {' '.join(known) or 'features unknown'}"
    return Finding("processor", OK, text)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return Finding("memory", OK, f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")


def _runtimes() -> Finding:
    there = {name: version for name in RUNTIMES if (version := _version(name))}
    text = ", ".join(f"{name} {version}" for name, version in there.items())
    if len(there) == 2:
        return Finding(
            "ONNX Runtime", FAULT, f"{text}: both write into one folder and break each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them",
        )  # fmt: skip
    if not there:
        return Finding("ONNX Runtime", FAULT, "not installed", "pip install onnxruntime")
    return Finding("ONNX Runtime", OK, text)


def _driver(driver: devices.Driver) -> list[Finding]:
    if not driver.gpus:
        missing = devices.library(devices.cuda_library())
        text = f"none: {driver.why}" + (f"; {missing}" if missing else "")
        return [Finding("GPU", NOTE, text, "install NVIDIA's driver if the machine has an NVIDIA GPU")]
    return [
        Finding(
            f"GPU {index}", OK,
            f"{gpu.name}, {gpu.memory / 2**30:.1f} GiB, SM {gpu.capability // 10}.{gpu.capability % 10}, "
            f"driver {driver.version}",
        )
        for index, gpu in enumerate(driver.gpus)
    ]  # fmt: skip


def _target(target: targets.Target, driver: devices.Driver) -> Finding:
    subject, install = f"target {target.name}", target.install
    try:
        module = targets.load(target)
    except MissingDependencyError as error:
        return Finding(subject, NOTE, error.what.removesuffix("."), install)
    except Exception as error:  # a library that fails during import
        return Finding(subject, FAULT, f"{target.module} cannot be imported: {error}", f"{install} again")
    text = f"{target.module} {getattr(module, '__version__', '')}"
    if target.device == "cpu":
        return Finding(subject, OK, text)
    plugin = target.provider == RTX
    if target.provider and not plugin and target.provider not in module.get_available_providers():
        return Finding(subject, NOTE, f"{text} is built without {target.provider}", install)
    there, missing = _libraries(module, target)
    named = [f"missing {', '.join(missing)}"] * bool(missing) + [f"found {', '.join(there)}"] * bool(there)
    if not driver.gpus:  # its libraries are still checked: images for GPUs are often made on machines without one
        builds = ["it builds engines here, and runs none"] * (target.name == "tensorrt-rtx")
        return Finding(subject, NOTE, "; ".join([f"{text}, and no GPU", *builds, *named]), install if missing else "")
    if target.compiled and not _has_cuda_python():
        return Finding(subject, FAULT, f"{text}, and no cuda-python to run its engines", install)
    capability = driver.gpus[0].capability
    fitting = PLUGIN_CAPABILITIES if plugin else CAPABILITIES
    if (plugin or target.name == "tensorrt-rtx") and capability not in fitting:
        return Finding(
            subject, NOTE, f"{text} builds for SM {_dotted(fitting)}, and this GPU is SM {_dotted([capability])}"
        )
    if plugin:
        return _plugin(subject, text, install)
    # onnxruntime-gpu always contains TensorRT's provider
    absent = NOTE if set(missing) <= set(TENSORRT_LIBRARIES) else FAULT
    return Finding(subject, absent if missing else OK, "; ".join([text, *named]), install if missing else "")


def _libraries(module: Any, target: targets.Target) -> tuple[list[str], list[str]]:
    """Return the present and the missing libraries that ONNX Runtime's provider loads from outside its package.

    Both lists are empty for other targets and on other systems than Linux, where the names differ.
    """
    if target.provider not in (CUDA, TENSORRT) or platform.system() != "Linux":
        return [], []
    preload(module, target.provider)
    needed = (*LIBRARIES, *(TENSORRT_LIBRARIES if target.provider == TENSORRT else ()))
    missing = [name for name in needed if devices.library(name)]
    return [name for name in needed if name not in missing], missing


def _plugin(subject: str, text: str, install: str) -> Finding:
    """Return whether TensorRT-RTX's plugin for ONNX Runtime registers and sees the GPU."""
    try:
        rtx_devices(onnxruntime())
    except SegueError as error:
        return Finding(subject, FAULT, f"{text} does not work: {error}", install)
    return Finding(subject, OK, text)


def _has_cuda_python() -> bool:
    try:  # other packages of NVIDIA also bring a folder named cuda
        import_module("cuda.bindings.runtime")
    except Exception:  # it may also be installed and fail to load
        return False
    return True


def _dotted(capabilities: Iterable[int]) -> str:
    return ", ".join(f"{c // 10}.{c % 10}" for c in capabilities)


def _cache() -> Finding:
    try:
        place = cache_directory()
    except UsageError as error:
        return Finding("cache", NOTE, error.what.removesuffix("."), error.advice)
    there = next(parent for parent in (place, *place.parents) if os.path.lexists(parent))
    kept = store.entries(store.root())
    engines = f"{len(kept)} engines of {sum(e.record.bytes for e in kept) / 1e6:.0f} MB"
    try:
        free = shutil.disk_usage(there).free
        check_writable(there / "probe")
    except (OSError, OutputError):
        return Finding(
            "cache", NOTE, f"{place} cannot be written: each start hashes every file again, and no engine can be built",
            "set XDG_CACHE_HOME to a directory that can be written",
        )  # fmt: skip
    return Finding("cache", OK if free > 2**30 else NOTE, f"{place}: {engines}, {free / 2**30:.1f} GiB free")


def _fit(bundle: Bundle, target: targets.Target, driver: devices.Driver) -> Finding:
    content, subject = bundle.manifest, f"{bundle.manifest.name} on {target.name}"
    weights = sum(content.files[file].bytes for file in {f for c in content.components.values() for f in c.weights})
    room = psutil.virtual_memory().total if target.device == "cpu" else driver.gpus[0].memory
    narrow = [name for name, c in content.components.items() if c.precision == "bf16"] if target.device == "cpu" else []
    if narrow:
        return Finding(
            subject, FAULT, f"{', '.join(narrow)} in bf16, which a processor cannot run", "export with --precision fp16"
        )
    if weights > room:
        text = f"{weights / 2**30:.1f} GiB of weights, {room / 2**30:.1f} GiB of memory"
        return Finding(subject, NOTE, text, "not all components fit at once: use a machine with more memory, or int8")
    if target.compiled:
        try:
            for name in content.components:
                find_engine(bundle, name, target, driver.gpus[0].capability)
        except SegueError as error:
            return Finding(subject, NOTE, error.what.removesuffix("."), error.advice.removeprefix("Run "))
    return Finding(subject, OK, f"{weights / 2**20:.0f} MiB of weights")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
