"""Build TensorRT-RTX engines without a GPU: of a bundle's components, and of components at full size.

    python benchmarks/rtx_build.py bundle bundles/emoji …                       # fp16 and bf16, SM 80, 86, 89 and 120
    python benchmarks/rtx_build.py full [sd3/transformer …] [--directory DIR]   # random weights

A build takes some three times the memory of the weights, and SD3-Medium's transformer (2.03 B) 9 GB in DIR. What a
machine has not the memory for (`NEEDS` times its weights) is listed as not built. SM 89, fp16, one size: 1024 px.

Prints and writes to benchmarks/results/rtx_build.json seconds, peak memory of the building process, bytes of engine and
weights, layers, how many attention layers were fused, and the compute capabilities and shapes that it was built for.
The engines go to a cache of their own, which is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from random_weights import graphs_of, parameters, write

from segue.export.families.graph import Graph

HERE = Path(__file__).parent
RESULTS = HERE / "results/rtx_build.json"
CAPABILITIES = (80, 86, 89, 120)  # of bundles
ALONE = (89,)  # of components at full size
USUAL = (128, 1)  # latents' side, 1024 pixels, and batch
RANGE = ((32, 1), USUAL, (192, 2))
NEEDS = 3.0  # times the weights' bytes
FULL = (
    "sd3/text_encoder", "sd3/text_encoder_2", "sd3/text_encoder_3", "sd3/transformer", "sd3/vae",
    "longcat-image/text_encoder", "longcat-image/transformer", "longcat-image/vae",
    "sdxl/unet", "sdxl/vae",
    "swifti2v/text_encoder", "swifti2v/transformer", "swifti2v/vae", "swifti2v/detail_transformer",
    "swifti2v/detail_vae",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bundle", "full"))
    parser.add_argument("names", nargs="*", help="bundles' directories, or components such as sdxl/unet")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in options.names or (["bundles/emoji"] if options.what == "bundle" else FULL):
        with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
            os.environ["XDG_CACHE_HOME"] = scratch
            if options.what == "bundle":
                results.setdefault("bundles", {})[Path(name).name] = of_bundle(Path(name), Path(scratch))
            else:
                results.setdefault("full", {})[name] = full(name, Path(scratch))
        results["versions"] = {"tensorrt-rtx": version("tensorrt-rtx")}
        results["cores"] = os.cpu_count()
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def of_bundle(source: Path, directory: Path) -> dict[str, Any]:
    """Build every component of a bundle as it is, and in bf16."""
    from segue.export.export import export
    from segue.export.unpack import unpack
    from segue.runtime.bundle import reader
    from segue.runtime.engine_cache import build

    unpack(source, directory / "checkpoint")
    export(directory / "checkpoint", directory / "bf16", precision="bf16", parity=False)
    rows = {}
    for path in (source, directory / "bf16"):
        opened = reader.read(path)
        for made in build.build(opened, build.BuildRequest("tensorrt-rtx", CAPABILITIES)):
            spec = opened.manifest.components[made.component]
            weights = sum(opened.manifest.files[file].bytes for file in spec.weights)
            key = f"{made.component}, {spec.precision}"
            rows[key] = row(made.entry.record, weights)
            print(key, rows[key], flush=True)
    return rows


def full(name: str, directory: Path) -> dict[str, Any]:
    """Build the engines of one component folder with random weights, for SM 89 in fp16; or say what forbids it."""
    from segue.engines.tensorrt.build import Settings
    from segue.engines.tensorrt.child import build_apart
    from segue.errors import EngineError

    graphs = graphs_of(name)
    needed = int(NEEDS * 2 * parameters(graphs))
    if needed > (free := psutil.virtual_memory().available):
        return {"not built": f"it wants up to {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} were free"}
    rows = {}
    for graph, path in zip(graphs, write(graphs, directory), strict=True):
        asked = RANGE if name == "sd3/transformer" else (USUAL,) * 3
        ways = [sized(name, graph, side, batch) for side, batch in asked]
        profile = {port.name: tuple(port.sized(way) for way in ways) for port in graph.inputs}
        plan = directory / "engine.plan"
        try:
            built = build_apart(path, Settings("tensorrt-rtx", ALONE, (profile,)), plan)  # type: ignore[arg-type]
        except EngineError as error:
            rows[graph.component] = {"refused": str(error)}
        else:
            rows[graph.component] = {
                "seconds": round(built.seconds, 1), "peak_bytes": built.peak, "bytes": plan.stat().st_size,
                "weights": path.with_name("model.safetensors").stat().st_size,
                "layers": built.layers, "fused": built.fused, "decomposed": built.decomposed, "capabilities": ALONE,
                "largest": {port: shapes[2] for port, shapes in profile.items() if "cache" not in port},
            }  # fmt: skip
        print(graph.component, rows[graph.component], flush=True)
        plan.unlink(missing_ok=True)
    return rows


def sized(name: str, graph: Graph, side: int, batch: int) -> dict[str, int]:
    """Return sizes for a picture of `side` latent pixels; for a stream of a video eight times those of its trial."""
    if name.startswith("swifti2v/"):
        return {dim: 8 * size for dim, size in graph.trials[-1].items()}
    plane = 8 * side if graph.component == "vae_encoder" else side
    text = 333 if name.startswith("sd3/") else 77  # 77 of CLIP beside 256 of T5
    return {"batch": batch, "height": plane, "width": plane, "length": 77, "text": text}


def row(record: Any, weights: int) -> dict[str, Any]:
    return {
        "seconds": round(record.seconds, 1), "peak_bytes": record.peak, "bytes": record.bytes, "weights": weights,
        "layers": record.layers, "fused": record.fused, "decomposed": record.decomposed,
        "capabilities": record.fingerprint.capabilities, "profiles": record.fingerprint.profiles,
    }  # fmt: skip


if __name__ == "__main__":
    main()
