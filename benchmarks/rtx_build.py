"""Build TensorRT-RTX engines without a GPU: of a bundle's components, and of SD3-Medium's full transformer.

    python benchmarks/rtx_build.py bundle bundles/emoji       # every component, fp16 and bf16, SM 80, 86, 89 and 120
    python benchmarks/rtx_build.py full [--directory DIR]     # 2.03 B random weights: 9 GB in DIR, 14 GB of memory

Prints and writes to benchmarks/results/rtx_build.json seconds, peak memory of the building process, bytes of engine and
weights, layers, and how many attention layers were fused. The engines go to a cache of their own, which is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from random_sd3 import write as write_sd3

HERE = Path(__file__).parent
RESULTS = HERE / "results/rtx_build.json"
CAPABILITIES = (80, 86, 89, 120)
SIDES = (32, 128, 192)  # latents: 256, 1024 and 1536 pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bundle", "full"))
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("bundles/emoji"))
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        os.environ["XDG_CACHE_HOME"] = name
        directory = Path(name)
        if options.what == "bundle":
            results.setdefault("bundles", {})[options.bundle.name] = of_bundle(options.bundle, directory)
        else:
            results["full"] = full(directory)
    results["versions"] = {"tensorrt-rtx": version("tensorrt-rtx")}
    results["cores"] = os.cpu_count()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def of_bundle(source: Path, directory: Path) -> dict[str, Any]:
    """Build every component of a bundle as it is, and in bf16."""
    from segue.export.export import export
    from segue.export.unpack import unpack
    from segue.runtime import build, bundle

    unpack(source, directory / "checkpoint")
    export(directory / "checkpoint", directory / "bf16", precision="bf16", parity=False)
    rows = {}
    for path in (source, directory / "bf16"):
        opened = bundle.read(path)
        for made in build.build(opened, build.BuildRequest("tensorrt-rtx", CAPABILITIES)):
            spec = opened.manifest.components[made.component]
            weights = sum(opened.manifest.files[file].bytes for file in spec.weights)
            key = f"{made.component}, {spec.precision}"
            rows[key] = row(made.entry.record, weights)
            print(key, rows[key], flush=True)
    return rows


def full(directory: Path) -> dict[str, Any]:
    """Build SD3-Medium's transformer with random weights, 256 to 1536 pixels, a batch of 1 and 2."""
    from segue.engines.tensorrt_build import Settings
    from segue.engines.tensorrt_child import build_apart

    graph, path = write_sd3(directory)
    sizes = [
        {"batch": batch, "height": side, "width": side, "text": 333}
        for batch, side in zip((1, 2, 2), SIDES, strict=True)
    ]
    profile = {port.name: tuple(port.sized(s) for s in sizes) for port in graph.inputs}
    plan = directory / "engine.plan"
    built = build_apart(path, Settings("tensorrt-rtx", (89,), (profile,)), plan)  # type: ignore[arg-type]
    found = {
        "seconds": round(built.seconds, 1), "peak_bytes": built.peak, "bytes": plan.stat().st_size,
        "weights": path.with_name("model.safetensors").stat().st_size,
        "layers": built.layers, "fused": built.fused, "decomposed": built.decomposed,
    }  # fmt: skip
    print("SD3-Medium's transformer", found)
    return found


def row(record: Any, weights: int) -> dict[str, Any]:
    return {
        "seconds": round(record.seconds, 1), "peak_bytes": record.peak, "bytes": record.bytes, "weights": weights,
        "layers": record.layers, "fused": record.fused, "decomposed": record.decomposed,
    }  # fmt: skip


if __name__ == "__main__":
    main()
