"""Export every component of the full-size models without its weights, then with weight files present.

    python benchmarks/weightless_export.py [--only sd3/transformer …] [--directory DIR]

Each component in a process of its own, which reports seconds, start-up and imports included, and its peak resident
memory (VmHWM). (a) No weights present: trace, translate, point at a file that is not there, write the graph. (b) A
sharded checkpoint of the published size present: its shards, sparse files of zeros, are placed in a bundle and hashed
as by segue export, and the graphs written beside them. The configurations are those of the published checkpoints
(benchmarks/configs/full_size.json). Ends with 1 above the gate of 1.5 GB. Writes a row as soon as it is measured, so
--only adds to the table of results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE / "configs/full_size.json"
RESULTS = HERE / "results/weightless_export.json"
PEAK = 1.5e9
SHARD = 5 * 10**9
KIND = "fp16"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="FAMILY/COMPONENT, such as sd3/transformer")
    parser.add_argument("--directory", type=Path, help="where the sparse files are made (default: the temporary one)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(*options.child.split(","), options.directory)))
        return 0
    known = [f"{family}/{folder}" for family, folders in json.loads(CONFIGS.read_text()).items() for folder in folders]
    unknown = set(options.only) - set(known)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose among {', '.join(known)}")
    results = json.loads(RESULTS.read_text()) if options.only and RESULTS.is_file() else {"components": {}}
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
        packages = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript")
        results["machine"] = {"cpu": processor(), "cores": os.cpu_count(), "load average": os.getloadavg()[0]}
        results["versions"] = {p: importlib.metadata.version(p) for p in packages}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    worst = max(c["peak_bytes"] for row in results["components"].values() for c in row.values() if isinstance(c, dict))
    print(f"{'within' if worst <= PEAK else 'OUTSIDE'} the gate of {PEAK / 1e9} GB: {worst / 1e9:.2f} GB")
    return 0 if worst <= PEAK else 1


def run(name: str, case: str, directory: Path) -> dict[str, Any]:
    """Return what the child process reports; its seconds include start-up and imports."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--child", f"{name},{case}", "--directory", str(directory)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"seconds": round(time.perf_counter() - started, 1), **json.loads(answer)}


def measured(name: str, case: str, directory: Path) -> dict[str, Any]:
    """Export the graphs of one component folder; case "absent" leaves the shards' headers for "present"."""
    import onnx_ir as ir

    from segue.export.checkpoint import convert, headers
    from segue.export.families.registry import families
    from segue.export.graphs import trace

    family_name, folder = name.split("/")
    configs = json.loads(CONFIGS.read_text())[family_name]
    family = next(f for f in families().values() if f.name == family_name)
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
    rows, parameters, used = [], 0, {}
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
            used |= {n: s for n, s in shapes.items() if graph.buffer(n) is None}
            table, offset = {}, 8
            for weight, shape in shapes.items():
                length = 2 * math.prod(shape)
                table[weight] = headers.Tensor(weight, f"{folder}/w.safetensors", offset, length, "F16", shape)
                offset += length
            written = trace.attach(model, table, graph, KIND)
            ir.save(model, path)
        parameters += written.parameters
        nodes = len(ir.load(path).graph)
        rows.append({"component": graph.component, "nodes": nodes, "bytes": path.stat().st_size})
    if case == "absent":
        write_sparse_shards(directory / folder, used)
    return {
        "peak_bytes": peak(), "parameters": parameters, "graphs": rows, "seconds placing and hashing": round(placed, 1),
    }  # fmt: skip


def write_sparse_shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write safetensors files of zeros for tensors of these shapes, each of up to 5 GB and none of it on the disk."""
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


def peak() -> int:
    """Return this process's peak resident memory in bytes; ru_maxrss would count the parent's at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def processor() -> str:
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
