"""GPU memory of ONNX Runtime's sessions: loaded, in a call and after it, compared with the count of their graphs.

    python benchmarks/engines/gpu_sessions.py BUNDLE COMPONENT:SIDE …    # emoji transformer:16 vae_decoder:64

SIDE is in latent pixels. The script needs a GPU and onnxruntime-gpu. It loads each component twice and calls it six
times: without a budget (the arena keeps its memory) and with one (the arena shrinks after each call). It asks the
driver for the memory in use twice a millisecond, and subtracts the value from before. It also times loading with ONNX
Runtime's constant folding, which Segue turns off. The script writes one entry per card and bundle to
benchmarks/results/gpu_sessions.json. The constants for GPUs in runtime/planning/ come from this file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.engines.devices import driver
from segue.engines.ort.engine import OrtEngine
from segue.engines.ort.load import onnxruntime
from segue.engines.ort.providers import CUDA, cuda_options, preload
from segue.engines.process import resident
from segue.runtime.bundle.manifest import Component
from segue.runtime.bundle.reader import Bundle, read
from segue.runtime.planning.costs import dims_of

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

MIB = 2**20
CALLS = 6
LIMIT = 2**35


def main() -> None:
    parser = common.make_parser(__doc__, "gpu_sessions")
    parser.add_argument("bundle")
    parser.add_argument("components", nargs="+")
    options = parser.parse_args()
    bundle, used = read(options.bundle), meter()
    idle = used()
    first = bundle.manifest.components["transformer_step"]
    step = OrtEngine(bundle.path(first.graph), provider=CUDA, settings=cuda_options(None))
    step.run(feeds(first, {"batch": 1, "height": 16, "width": 16}))
    rows, context = [], used() - idle
    for name, side in (component.split(":") for component in options.components):
        rows.append(row(bundle, name, int(side), used))
        print(json.dumps(rows[-1]), flush=True)
    step.close()
    entry = {
        "bundle": bundle.manifest.name,
        "GPU": driver().gpus[0].name,
        "onnxruntime": onnxruntime().__version__,
        "context and a step (MiB)": round(context, 1),
        "rows": rows,
        **common.header("segue", "onnxruntime"),
    }
    common.merge(options.out, entry, same=("bundle", "GPU"))


def meter() -> Callable[[], float]:
    """Return a function that returns the MiB in use on the first GPU."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / MIB


def feeds(spec: Component, dims: dict[str, int]) -> dict[str, np.ndarray]:
    rng, made = np.random.default_rng(0), {}
    for port in spec.inputs:
        shape = [dims.get(size, 1) if isinstance(size, str) else size for size in port.shape]
        drawn = rng.standard_normal(shape) if "float" in port.dtype else np.ones(shape)
        made[port.name] = drawn.astype(port.dtype)
    return made


def row(bundle: Bundle, name: str, side: int, used: Callable[[], float]) -> dict[str, Any]:
    content = bundle.manifest
    spec, factor = content.components[name], content.latents.factor
    assert spec.cost is not None
    dims = dims_of(content, name, factor * side, factor * side) | {"batch": 1}
    given = feeds(spec, dims)
    found = {
        "component": name, "side": side,
        "weights (MiB)": round(sum(content.files[file].bytes for file in spec.weights) / MIB, 1),
        "counted (MiB)": round(spec.cost.activations.at(dims) / MIB, 1),
    }  # fmt: skip
    graph = bundle.path(spec.graph)
    for label, settings, pooled in (("pooled", cuda_options(None), True), ("limited", cuda_options(LIMIT), False)):
        before, began = used(), time.perf_counter()
        with OrtEngine(graph, provider=CUDA, settings=settings, pooled=pooled) as engine:
            seconds, loaded = time.perf_counter() - began, used() - before
            peak, times = watched(partial(engine.run, given), used)
            found[label] = {
                "loaded (MiB)": round(loaded, 1), "loading (s)": round(seconds, 2),
                "peak (MiB)": round(peak - before, 1), "after (MiB)": round(used() - before, 1),
                "first call (ms)": round(1e3 * times[0], 1), "best call (ms)": round(1e3 * min(times), 1),
            }  # fmt: skip
    found["folded"] = folded(graph)
    return found


def watched(call: Callable[[], Any], used: Callable[[], float]) -> tuple[float, list[float]]:
    """Return the peak in use during several calls, and the seconds of each."""
    most, over, times = [0.0], threading.Event(), []

    def watch() -> None:
        while not over.wait(0.0005):
            most[0] = max(most[0], used())

    watching = threading.Thread(target=watch)
    watching.start()
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    over.set()
    watching.join()
    return most[0], times


def folded(graph: Path) -> dict[str, float]:
    """Return the seconds of loading with constant folding, and the MiB that it adds on the host."""
    ort = onnxruntime()
    preload(ort, CUDA)
    before, began = resident(), time.perf_counter()
    session = ort.InferenceSession(os.fspath(graph), providers=[(CUDA, cuda_options(None))])
    made = {
        "loading (s)": round(time.perf_counter() - began, 2),
        "on the host (MiB)": round((resident() - before) / MIB, 1),
    }
    del session
    return made


if __name__ == "__main__":
    main()
