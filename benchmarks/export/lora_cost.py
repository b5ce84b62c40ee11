"""Measure what the inputs for a LoRA at run time cost a denoiser, at ranks 0 (none), 16 and 64.

    python benchmarks/export/lora_cost.py [--blocks 4] [--side 512] [--rounds 5]

The denoiser is that of Stable Diffusion 3 Medium with its first blocks and random weights in fp32, on ONNX Runtime's
CPU engine with one thread. A block costs as much as in the whole model, so the shares hold for it nearly. Each rank has
its own process, which loads the graph, feeds zeros, and then feeds random numbers. It reports the processor seconds of
a call (the median, and the lowest with zeros), the peak of resident memory above that before the load, and the bytes of
the inputs. The results go to benchmarks/results/lora_cost.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

RANKS = (0, 16, 64)
PACKAGES = ("numpy", "onnxruntime", "torch", "diffusers")


def main() -> int:
    parser = common.make_parser(__doc__, "lora_cost", rounds=5)
    parser.add_argument("--blocks", type=int, default=4, help="of the model's 24")
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--child", nargs=2, help="a graph and its rank")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(Path(options.child[0]), options.side, options.rounds)))
        return 0
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for rank, graph in written(Path(scratch), options.blocks).items():
            rows[str(rank)] = row = common.child(
                __file__, "--child", graph, rank, "--side", options.side, "--rounds", options.rounds
            )
            row["graph_bytes"] = graph.stat().st_size
            print(rank, json.dumps(row), flush=True)
    result = {**common.header(*PACKAGES), "blocks": options.blocks, "side": options.side, "ranks": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def written(directory: Path, blocks: int) -> dict[int, Path]:
    """Write the denoiser with random weights, and a graph for each rank beside them."""
    from benchmarks.export import random_weights
    from segue.export.checkpoint import headers
    from segue.export.families.sd3 import graphs
    from segue.export.graphs import trace

    config = json.loads(common.CONFIGS.read_text())["sd3"]["transformer"] | {"num_layers": blocks}
    graph = graphs.transformer(config)
    (path,) = random_weights.write([graph], directory, "fp32")
    file = f"{graph.folder}/model.safetensors"
    tensors = headers.read(directory / file, file)
    found = {0: path}
    for rank in RANKS[1:]:
        found[rank] = path.with_name(f"rank_{rank}.onnx")
        trace.write(graph, "fp32", tensors, found[rank], rank=rank)
    return found


def measured(graph: Path, side: int, rounds: int) -> dict[str, Any]:
    """Return the figures of one graph, from this process."""
    import numpy as np

    from segue.engines.ort.engine import OrtEngine
    from segue.runtime.lora.inputs import is_adapter

    sizes = {"batch": 1, "height": side // 8, "width": side // 8, "text": 154}
    rng = np.random.default_rng(0)
    before = resident("VmRSS")
    started = time.perf_counter()
    with OrtEngine(graph, threads=1, pooled=False) as engine:
        loading = time.perf_counter() - started
        feeds, lora = {}, {}
        for spec in engine.inputs:
            shape = [sizes.get(d, 1) if isinstance(d, str) else d for d in spec.shape]
            if is_adapter(spec.name):
                lora[spec.name] = np.zeros(shape, spec.dtype)
            else:
                feeds[spec.name] = rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
        spent: dict[str, list[float]] = {"zeros": [], "random": []}
        for content, seconds in spent.items():
            if content == "random":
                peak = resident("VmHWM") - before
                for array in lora.values():
                    array[:] = 0.02 * rng.standard_normal(array.shape)
            engine.run({**feeds, **lora})
            for _ in range(rounds):
                begun = time.process_time()
                engine.run({**feeds, **lora})
                seconds.append(time.process_time() - begun)
    return {
        "load_seconds": round(loading, 2),
        **{f"call_seconds_{name}": round(statistics.median(times), 3) for name, times in spent.items()},
        "lowest_seconds_zeros": round(min(spent["zeros"]), 3),
        "peak_bytes": peak,
        "inputs": len(lora),
        "input_bytes": sum(array.nbytes for array in lora.values()),
    }


def resident(what: str) -> int:
    """Return the bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


if __name__ == "__main__":
    sys.exit(main())
