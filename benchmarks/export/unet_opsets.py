"""Cost of SDXL's UNet on the processor at opset 20 (attention as several operators) and at 23 (as one operator).

    python benchmarks/export/unet_opsets.py [--rounds 9] [--precision fp32] [--side 32 64 128]

The UNet is of the published kind with a fifth of the channels (64, 128, 256; attention heads of 64), fewer layers and
random weights. The script writes it at both opsets, with one file of weights. It opens both graphs and calls them in
turns with the same noise and a batch of one. The peaks of memory come from one process per graph, which calls it
twice.

For each precision the results hold seconds, the ratio 23 / 20, bytes, and the relative L2 between the outputs. They go
to benchmarks/results/unet_opsets.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from segue.engines.ort.engine import OrtEngine
from segue.engines.process import peak_resident
from segue.export.families.sdxl.graphs import unet

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common
from benchmarks.export.random_weights import write

NARROW = {
    "block_out_channels": [64, 128, 256], "attention_head_dim": [1, 2, 4],  # the key means heads, despite its name
    "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 4],
}  # fmt: skip
OPSETS = (20, 23)
TEXT = 77


def main() -> None:
    parser = common.make_parser(__doc__, "unet_opsets", rounds=9)
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--side", type=int, nargs="+", default=[32, 64, 128], help="sides of square latents")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(peak(Path(options.child[0]), Path(options.child[1])))
        return
    graph = unet(json.loads(common.CONFIGS.read_text())["sdxl"]["unet"] | NARROW)
    results = common.load(options.out, {})
    with tempfile.TemporaryDirectory() as scratch:
        both = [dataclasses.replace(graph, opset=opset, file=f"{opset}.onnx") for opset in OPSETS]
        paths = dict(zip(OPSETS, write(both, Path(scratch), options.precision), strict=True))
        weights = paths[20].with_name("model.safetensors").stat().st_size
        made: dict[str, Any] = {"weights": weights, "nodes": {}, "sides": {}}
        for opset, path in paths.items():
            kinds = Counter(node.op_type for node in ir.load(path).graph)
            made["nodes"][opset] = {"all": kinds.total(), "Attention": kinds["Attention"]}
        for side in options.side:
            feeds = graph.feed(np.random.default_rng(0), {"batch": 1, "height": side, "width": side, "text": TEXT})
            made["sides"][side] = compared(paths, feeds, options.rounds)
            given = Path(scratch) / "feeds.npz"
            np.savez(given, **feeds)  # type: ignore[arg-type]
            made["sides"][side]["peak_bytes"] = {
                opset: common.child(__file__, "--child", path, given) for opset, path in paths.items()
            }
            print(side, made["sides"][side], flush=True)
    results[options.precision] = made
    results["rounds"] = options.rounds
    common.write(options.out, results | common.header("onnxruntime", "diffusers", "torch"))


def compared(paths: dict[int, Path], feeds: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """Call both graphs in turns, after one call of each that is not counted."""
    seconds: dict[int, list[float]] = {opset: [] for opset in paths}
    outputs = {}
    with OrtEngine(paths[20]) as plain, OrtEngine(paths[23]) as fused:
        sides = [(20, plain), (23, fused)]
        for turn in range(rounds + 1):
            for opset, engine in sides if turn % 2 else reversed(sides):
                started = time.perf_counter()
                outputs[opset] = engine.run(feeds)["noise"].astype(np.float32)
                if turn:
                    seconds[opset].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(seconds[20], seconds[23], strict=True)]
    spread = common.spread(ratios, 3)
    return {
        "seconds, median": {opset: round(statistics.median(taken), 4) for opset, taken in seconds.items()},
        "23 / 20, median": spread["median"],
        "lowest": spread["lowest"],
        "highest": spread["highest"],
        "relative L2": float(np.linalg.norm(outputs[23] - outputs[20]) / np.linalg.norm(outputs[20])),
    }


def peak(graph: Path, given: Path) -> int:
    """Return the peak memory of this process after two calls of `graph`."""
    with np.load(given) as feeds, OrtEngine(graph) as engine:
        for _ in range(2):
            engine.run({name: feeds[name] for name in feeds})
    return peak_resident()


if __name__ == "__main__":
    main()
