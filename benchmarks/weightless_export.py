"""Export SD3-Medium's full transformer (2.03 B parameters) without its weights, and with a 4 GB file of random ones.

    python benchmarks/weightless_export.py [--directory DIR]

(a) no weights present: trace, translate, attach, write the graph. (b) a random fp16 safetensors file present: the same
after placing the file in the bundle (reflink, or copy) with its sha256. Each in its own process, which reports seconds,
start-up and imports included, and its peak resident memory (VmHWM). DIR needs 9 GB free for (b). Ends with 1 above the
gates: (a) 60 s and 1.0 GB, (b) 1.2 GB, on 2 cores.
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

CONFIG = {  # stabilityai/stable-diffusion-3-medium-diffusers, transformer/config.json
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SECONDS = 60
PEAK = {"weights absent": 1.0e9, "weights present": 1.2e9}
RESULTS = Path(__file__).parent / "results" / "weightless_export.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the 4 GB file is made (default: the temporary directory)")
    parser.add_argument("--child", choices=("absent", "present"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(absent(options.directory) if options.child == "absent" else present(options.directory)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        cases = {"weights absent": run("absent", directory)}
        write_random_weights(directory)
        cases["weights present"] = run("present", directory)
    for case, figures in cases.items():
        print(
            f"{case}: {figures['seconds']:.1f} s, peak {figures['peak_bytes'] / 1e9:.2f} GB, graph "
            f"{figures['graph_bytes'] / 1e6:.2f} MB, {figures['parameters'] / 1e9:.3f} B parameters"
        )
    packages = ("torch", "diffusers", "onnx", "onnx-ir", "onnxscript")
    machine = {"cpu": processor(), "cores": os.cpu_count(), "load average": os.getloadavg()[0], "nice": os.nice(0)}
    versions = {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"cases": cases, "machine": machine, "versions": versions}, indent=1) + "\n")
    passed = cases["weights absent"]["seconds"] <= SECONDS and all(cases[n]["peak_bytes"] <= PEAK[n] for n in PEAK)
    print("within the gates" if passed else "OUTSIDE the gates")
    return 0 if passed else 1


def run(child: str, directory: Path) -> dict[str, float]:
    """Return what the child process reports; its seconds include start-up and imports."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--child", child, "--directory", str(directory)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"seconds": time.perf_counter() - started, **json.loads(answer)}


def absent(directory: Path) -> dict[str, float]:
    """Export with initialisers that refer to a file that does not exist; leave its header for `present`."""
    import onnx_ir as ir

    from segue.export import headers, trace
    from segue.export.families import sd3

    graph = sd3.transformer(CONFIG)
    model = trace.trace(graph, "fp16")
    table = []
    for value in model.graph.inputs[len(graph.inputs) :]:
        shape = tuple(int(d) for d in value.shape)
        table.append((value.name.removeprefix(trace.PREFIX), "F16", shape, 2 * math.prod(shape)))
    head = headers.encode(table)
    (directory / "head").write_bytes(head)
    tensors, offset = {}, len(head)
    for name, dtype, shape, length in table:
        tensors[name] = headers.Tensor(name, WEIGHTS, offset, length, dtype, shape)
        offset += length
    written = trace.attach(model, tensors, graph, "fp16")
    path = directory / "absent.onnx"
    ir.save(model, path)
    return {"peak_bytes": peak(), "graph_bytes": path.stat().st_size, "parameters": written.parameters}


def present(directory: Path) -> dict[str, float]:
    """Place the weights in a bundle directory and export beside them, as segue export does."""
    from segue.export import checkpoint, precision

    bundle = directory / "bundle"
    (bundle / "transformer").mkdir(parents=True)
    started = time.perf_counter()
    precision.place(directory / WEIGHTS, bundle / WEIGHTS)
    precision.place(directory / "transformer/config.json", bundle / "transformer/config.json")
    placed = time.perf_counter() - started

    from segue.export import trace
    from segue.export.families import sd3

    part = checkpoint.read_part(bundle, "transformer")
    path = bundle / "transformer" / "model.onnx"
    written = trace.write(sd3.transformer(part.config), checkpoint.precision(part), part.tensors, path)
    figures = {"peak_bytes": peak(), "graph_bytes": path.stat().st_size, "parameters": written.parameters}
    return {**figures, "seconds placing and hashing": placed}


def write_random_weights(directory: Path) -> None:
    """Write the safetensors file whose header `absent` left, with random bytes for tensors."""
    head = (directory / "head").read_bytes()
    table = json.loads(head[8:])
    left = max(entry["data_offsets"][1] for entry in table.values())
    path = directory / WEIGHTS
    path.parent.mkdir()
    (path.parent / "config.json").write_text(json.dumps(CONFIG))
    piece = os.urandom(2**24)
    with path.open("wb") as file:
        file.write(head)
        while left:
            left -= file.write(piece[: min(left, len(piece))])


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
