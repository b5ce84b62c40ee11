"""One step of SD3-Medium at 512 x 512 px on a processor, whole and in parts: memory, time, and the same output.

    python benchmarks/runtime/block_streaming.py [--directory DIR]    # 4.2 GB in DIR, 14 GB of memory

The transformer has its published configuration and random fp16 weights (2.03 B). It gets 1,024 tokens of the picture
and 333 of the text. Each variant runs in its own process, one after another. Its peak is resident memory, file pages
included, minus that of the idle process. In parts it must stay within 3 GiB and give the output of the whole graph.
The results go to benchmarks/results/block_streaming.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from segue.engines.base import TensorSpec

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

BUDGET = 3 * 2**30
PART = 2**28
SIZES = {"batch": 1, "height": 64, "width": 64, "text": 333}
VARIANTS = ("parts", "parts, the next one ahead", "whole")
INPUTS = (
    TensorSpec("hidden_states", "float16", ("batch", 16, "height", "width")),
    TensorSpec("encoder_hidden_states", "float16", ("batch", "text", 4096)),
    TensorSpec("pooled_projections", "float16", ("batch", 2048)),
    TensorSpec("timestep", "float32", ("batch",)),
)
OUTPUTS = (TensorSpec("velocity", "float16", ("batch", 16, "height", "width")),)


def main() -> int:
    parser = common.make_parser(__doc__, "block_streaming", rounds=2)
    parser.add_argument("--directory", type=Path, help="for the weights (default: the temporary one)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.child, options.directory)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        prepare(directory)
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        for variant in options.rounds * VARIANTS:
            runs[variant].append(common.child(__file__, "--child", variant, "--directory", directory))
            print(variant, runs[variant][-1], flush=True)
        whole = np.load(directory / "whole.npy")
        equal = {
            variant: bool(np.array_equal(np.load(directory / f"{variant}.npy"), whole)) for variant in VARIANTS[:2]
        }
    seconds = {variant: [run["seconds"] for run in found] for variant, found in runs.items()}
    peaks = {variant: max(run["peak"] for run in found) for variant, found in runs.items()}
    results = {
        "budget": BUDGET,
        "peak (bytes)": peaks,
        "seconds": seconds,
        "parts": runs[VARIANTS[0]][0]["parts"],
        "equal to the whole graph's output": equal,
        "times as long as the whole, loading included": {
            variant: round(sum(seconds[variant]) / sum(seconds["whole"]), 2) for variant in VARIANTS[:2]
        },
        "load average": os.getloadavg()[0],
        **common.header("segue", "onnxruntime"),
    }
    common.report(options.out, results)
    return common.exit_code(
        *(common.Gate(f"peak of {variant} (GiB)", peaks[variant] / 2**30, BUDGET / 2**30) for variant in VARIANTS[:2]),
        common.Gate("variants with another output", list(equal.values()).count(False), 0),
    )


def prepare(directory: Path) -> None:
    """Write weights, graph and parts."""
    from benchmarks.export.random_weights import graphs_of, write
    from segue.export.graphs.cut import cut

    path = write(graphs_of("sd3/transformer"), directory)[0]
    parts = cut(path, SIZES, PART)
    (directory / "parts.json").write_text(json.dumps([asdict(part) for part in parts]))


def measured(variant: str, directory: Path) -> dict[str, Any]:
    """Make one call and write its output; return its peak in bytes and its seconds, loading included."""
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
    if variant == "whole":
        with OrtEngine(directory / "transformer/model.onnx") as engine:
            found = engine.run(feeds)
    else:
        heap.give_back()
        opened = [
            StreamedPart(lambda part=part: OrtEngine(directory / part["graph"], pooled=False), part["inputs"])
            for part in parts
        ]
        with StreamedEngine(opened, INPUTS, OUTPUTS, "the transformer", ahead="ahead" in variant) as engine:
            found = engine.run(feeds)
    seconds = time.perf_counter() - began
    np.save(directory / f"{variant}.npy", found["velocity"])
    return {"peak": resident("VmHWM") - idle, "seconds": round(seconds, 1), "parts": len(parts)}


if __name__ == "__main__":
    sys.exit(main())
