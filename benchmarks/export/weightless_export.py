"""Export every component of the full-size models without its weights, then with weight files present.

    python benchmarks/export/weightless_export.py [--only sd3/transformer …] [--directory DIR]

Each component has its own process. It reports its seconds, start-up and imports included, and its peak of resident
memory (VmHWM). There are two cases:

- absent: no weights exist. The process traces, translates, points at an absent file, and writes the graph.
- present: a sharded checkpoint of the published size exists, as sparse files of zeros. The process places its shards
  in a bundle and hashes them, as `segue export` does, and writes the graphs beside them.

The configurations are those of the published checkpoints (benchmarks/configs/full_size.json). The exit code is 1 if a
peak is above 1.5 GB. The script writes each row as soon as it is measured, to
benchmarks/results/weightless_export.json. `--only` keeps the other rows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

PEAK = 1.5e9
SHARD = 5 * 10**9
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript")
KIND = "fp16"


def main() -> int:
    parser = common.make_parser(__doc__, "weightless_export")
    parser.add_argument("--only", nargs="+", default=[], help="MODEL/COMPONENT, such as sd3/transformer")
    parser.add_argument("--directory", type=Path, help="for the sparse files (default: the temporary one)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, case = options.child.split(",")
        print(json.dumps(measured(name, case, options.directory)))
        return 0
    known = common.full_size_components()
    unknown = set(options.only) - set(known)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose among {', '.join(known)}")
    results = common.load(options.out, {"components": {}}) if options.only else {"components": {}}
    for name in options.only or known:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            row = {case: run(name, case, Path(directory)) for case in ("absent", "present")}
        results["components"][name] = row
        graphs = ", ".join(
            f"{g['component']} {g['nodes']} nodes {g['bytes'] / 1e6:.2f} MB" for g in row["absent"]["graphs"]
        )
        for case, figures in row.items():
            print(
                f"{name}, weights {case}: {figures['seconds']:.1f} s, peak {figures['peak_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
        print(f"  {row['absent']['parameters'] / 1e9:.3f} B parameters; {graphs}", flush=True)
        header = common.header(*PACKAGES)
        machine = {"cpu": header["processor"], "cores": header["cores"], "load average": header["load"]}
        common.write(options.out, results | {"machine": machine} | header)
    worst = max(c["peak_bytes"] for row in results["components"].values() for c in row.values() if isinstance(c, dict))
    return common.exit_code(common.Gate("highest peak (GB)", worst / 1e9, PEAK / 1e9))


def run(name: str, case: str, directory: Path) -> dict[str, Any]:
    """Return the report of the child process; its seconds include start-up and imports."""
    started = time.perf_counter()
    report = common.child(__file__, "--child", f"{name},{case}", "--directory", directory)
    return {"seconds": round(time.perf_counter() - started, 1), **report}


def measured(name: str, case: str, directory: Path) -> dict[str, Any]:
    """Export the graphs of one component folder; case "absent" writes the shards for case "present"."""
    import onnx_ir as ir
    import torch

    from segue.engines.process import peak_resident
    from segue.export.checkpoint import convert, headers
    from segue.export.families.registry import named
    from segue.export.graphs import trace
    from segue.export.graphs.attach import attach

    model_name, folder = name.split("/")
    family_name, configs = common.full_size(model_name)
    family = named(family_name)
    graphs = [graph for graph in family.graphs(configs) if graph.folder == folder]
    placed = 0.0
    if case == "present":
        started = time.perf_counter()
        (directory / "bundle" / folder).mkdir(parents=True)
        tensors: dict[str, headers.Tensor] = {}
        for shard in sorted((directory / folder).glob("*.safetensors")):
            convert.place(shard, directory / "bundle" / folder / shard.name)
            tensors |= headers.read(directory / "bundle" / folder / shard.name, f"{folder}/{shard.name}")
        placed = time.perf_counter() - started
    rows, parameters = [], 0
    used: dict[str, tuple[int, ...]] = {}
    for graph in graphs:
        path = directory / ("bundle" if case == "present" else "absent") / folder / graph.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if case == "present":
            written = trace.write(graph, KIND, tensors, path)
        else:
            model = trace.trace(graph, KIND)
            weights = {
                v.name.removeprefix(trace.PREFIX): v for v in model.graph.inputs if v.name.startswith(trace.PREFIX)
            }
            shapes = {n: tuple(int(d) for d in v.shape) for n, v in weights.items()}
            with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
                held = graph.build().state_dict()  # with the buffers that a checkpoint holds, such as SD3's table
            used |= {name: shape for name, shape in shapes.items() if name in held}
            table, offset = {}, 8
            for weight, shape in shapes.items():
                length = 2 * math.prod(shape)
                table[weight] = headers.Tensor(weight, f"{folder}/w.safetensors", offset, length, "F16", shape)
                offset += length
            written = attach(model, table, graph, KIND)
            ir.save(model, path)
        parameters += written.parameters
        nodes = len(ir.load(path).graph)
        rows.append({"component": graph.component, "nodes": nodes, "bytes": path.stat().st_size})
    if case == "absent":
        write_sparse_shards(directory / folder, used)
    return {
        "peak_bytes": peak_resident(),
        "parameters": parameters,
        "graphs": rows,
        "seconds placing and hashing": round(placed, 1),
    }


def write_sparse_shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write safetensors files of zeros for tensors of these shapes, up to 5 GB each; they take no space on the disk."""
    from segue.export.checkpoint import headers

    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in shapes.items():
        size += 2 * math.prod(shape)
        if size > SHARD and shards[-1]:
            shards.append([])
            size = 2 * math.prod(shape)
        shards[-1].append((name, shape))
    folder.mkdir()
    for number, shard in enumerate(shards):
        head = headers.encode([(name, "F16", shape, 2 * math.prod(shape)) for name, shape in shard])
        with (folder / f"model-{number + 1:05}-of-{len(shards):05}.safetensors").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + sum(2 * math.prod(shape) for _, shape in shard))


if __name__ == "__main__":
    sys.exit(main())
