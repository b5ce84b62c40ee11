"""One step of SD3-Medium at 512 x 512 px on a processor, whole and in parts: memory, time, and the same output.

    python benchmarks/block_streaming.py [--directory DIR]     # 2.03 B random weights: 4.2 GB in DIR, 14 GB of memory

The transformer in its published configuration, fp16 weights, 1,024 tokens of the picture and 333 of the text. Each way
in a process of its own, one after another; its peak is resident memory, file pages included, less that of the idle
process. In parts it must stay within 3 GiB. Prints, and writes to benchmarks/results/block_streaming.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from segue.engines.base import TensorSpec

BUDGET = 3 * 2**30
PART = 2**28
SIZES = {"batch": 1, "height": 64, "width": 64, "text": 333}
WAYS = ("parts", "parts, the next one ahead", "whole")
INPUTS = (
    TensorSpec("hidden_states", "float16", ("batch", 16, "height", "width")),
    TensorSpec("encoder_hidden_states", "float16", ("batch", "text", 4096)),
    TensorSpec("pooled_projections", "float16", ("batch", 2048)),
    TensorSpec("timestep", "float32", ("batch",)),
)
OUTPUTS = (TensorSpec("velocity", "float16", ("batch", 16, "height", "width")),)
RESULTS = Path(__file__).parent / "results/block_streaming.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the weights are made (default: the temporary one)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.child, options.directory)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        prepare(directory)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for way in options.rounds * WAYS:
            runs[way].append(child(way, directory))
            print(way, runs[way][-1], flush=True)
        whole = np.load(directory / "whole.npy")
        equal = {way: bool(np.array_equal(np.load(directory / f"{way}.npy"), whole)) for way in WAYS[:2]}
    seconds = {way: [run["seconds"] for run in found] for way, found in runs.items()}
    results = {
        "budget": BUDGET,
        "peak (bytes)": {way: max(run["peak"] for run in found) for way, found in runs.items()},
        "seconds": seconds,
        "parts": runs[WAYS[0]][0]["parts"],
        "equal to the whole graph's output": equal,
        "times as long as the whole, loading included": {
            way: round(sum(seconds[way]) / sum(seconds["whole"]), 2) for way in WAYS[:2]
        },
        "cores": os.cpu_count(), "load average": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("segue", "onnxruntime")},
    }  # fmt: skip
    print(json.dumps(results, indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    within = all(results["peak (bytes)"][way] <= BUDGET for way in WAYS[:2])
    return 0 if within and all(equal.values()) else 1


def prepare(directory: Path) -> None:
    """Write weights, graph and parts."""
    from random_weights import graphs_of, write

    from segue.export.graphs.cut import cut

    path = write(graphs_of("sd3/transformer"), directory)[0]
    parts = cut(path, SIZES, PART)
    (directory / "parts.json").write_text(json.dumps([asdict(part) for part in parts]))


def child(way: str, directory: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", way, "--directory", str(directory)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured(way: str, directory: Path) -> dict[str, Any]:
    """Make one call, write what it gives, and return its peak in bytes and its seconds, loading included."""
    from segue.engines import heap
    from segue.engines.ort.engine import OrtEngine
    from segue.engines.streamed import StreamedEngine, StreamedPart
    from segue.export.checks.footprint_child import resident

    idle = resident("VmRSS")
    parts = json.loads((directory / "parts.json").read_text())
    random = np.random.default_rng(1)
    feeds = {
        port.name: random.standard_normal([SIZES.get(size, size) for size in port.shape]).astype(port.dtype)
        for port in INPUTS
    }
    feeds["timestep"][:] = 750
    began = time.perf_counter()
    if way == "whole":
        with OrtEngine(directory / "transformer/model.onnx") as engine:
            found = engine.run(feeds)
    else:
        heap.give_back()
        opened = [
            StreamedPart(lambda part=part: OrtEngine(directory / part["graph"], pooled=False), part["inputs"])
            for part in parts
        ]
        with StreamedEngine(opened, INPUTS, OUTPUTS, "the transformer", ahead="ahead" in way) as engine:
            found = engine.run(feeds)
    seconds = time.perf_counter() - began
    np.save(directory / f"{way}.npy", found["velocity"])
    return {"peak": resident("VmHWM") - idle, "seconds": round(seconds, 1), "parts": len(parts)}


if __name__ == "__main__":
    sys.exit(main())
