"""What SDXL's UNet costs on the processor at opset 20, with attention taken apart, and at 23, with it as one operator.

    python benchmarks/unet_opsets.py [--rounds 9] [--precision fp32] [--side 32 64 128]

A UNet of the published kind, with a fifth of the channels (64, 128, 256; attention heads of 64), fewer layers and
random weights, is written at both opsets, over one file of weights. Both graphs are open and called in turns with the
same noise for a batch of one; the peaks of memory are of a process for each, which loads the graph and calls it twice.
Prints and writes to benchmarks/results/unet_opsets.json, by precision: seconds and the ratio 23 / 20 of all rounds,
bytes, and how far the outputs are apart (relative L2).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from random_weights import CONFIGS, write

from segue.engines.ort.engine import OrtEngine
from segue.engines.process import peak_resident
from segue.export.families.sdxl.graphs import unet

RESULTS = Path(__file__).parent / "results/unet_opsets.json"
NARROW = {
    "block_out_channels": [64, 128, 256], "attention_head_dim": [1, 2, 4],  # heads, in spite of the key's name
    "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 4],
}  # fmt: skip
OPSETS = (20, 23)
TEXT = 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--side", type=int, nargs="+", default=[32, 64, 128], help="of square latents")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(peak(Path(options.child[0]), Path(options.child[1])))
        return
    graph = unet(json.loads(CONFIGS.read_text())["sdxl"]["unet"] | NARROW)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        both = [dataclasses.replace(graph, opset=opset, file=f"{opset}.onnx") for opset in OPSETS]
        paths = dict(zip(OPSETS, write(both, Path(scratch), options.precision), strict=True))
        made = {"weights": (paths[20].with_name("model.safetensors")).stat().st_size, "nodes": {}, "sides": {}}
        for opset, path in paths.items():
            kinds = Counter(node.op_type for node in ir.load(path).graph)
            made["nodes"][opset] = {"all": kinds.total(), "Attention": kinds["Attention"]}
        for side in options.side:
            feeds = graph.feed(np.random.default_rng(0), {"batch": 1, "height": side, "width": side, "text": TEXT})
            made["sides"][side] = compared(paths, feeds, options.rounds)
            given = Path(scratch) / "feeds.npz"
            np.savez(given, **feeds)  # type: ignore[arg-type]
            made["sides"][side]["peak_bytes"] = {
                opset: int(subprocess.check_output([sys.executable, __file__, "--child", path, given]))
                for opset, path in paths.items()
            }
            print(side, made["sides"][side], flush=True)
    results[options.precision] = made
    results["rounds"], results["cores"], results["load"] = options.rounds, os.cpu_count(), os.getloadavg()[0]
    results["versions"] = {name: version(name) for name in ("onnxruntime", "diffusers", "torch")}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def compared(paths: dict[int, Path], feeds: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """Call both graphs in turns, after a call of each that does not count."""
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
    return {
        "seconds, median": {opset: round(statistics.median(taken), 4) for opset, taken in seconds.items()},
        "23 / 20, median": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "relative L2": float(np.linalg.norm(outputs[23] - outputs[20]) / np.linalg.norm(outputs[20])),
    }


def peak(graph: Path, given: Path) -> int:
    """Return the most memory of this process once it has called `graph` twice."""
    with np.load(given) as feeds, OrtEngine(graph) as engine:
        for _ in range(2):
            engine.run({name: feeds[name] for name in feeds})
    return peak_resident()


if __name__ == "__main__":
    main()
