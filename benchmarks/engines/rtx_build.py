"""Build TensorRT-RTX engines without a GPU: of a bundle's components, and of components at full size.

    python benchmarks/engines/rtx_build.py bundle bundles/emoji …    # fp16 and bf16, SM 80, 86, 89 and 120
    python benchmarks/engines/rtx_build.py full [sd3/transformer …] [--directory DIR]    # random weights

A build takes about three times the memory of the weights. SD3-Medium's transformer (2.03 B) takes 9 GB in DIR. The
script lists a component as not built if the machine has less memory than `NEEDS` times its weights. Components at full
size are built for SM 89 in fp16, for one size: 1024 px.

For each engine the results hold the seconds, the peak memory of the building process, the bytes of engine and weights,
the layers, the fused attention layers, the compute capabilities and the shapes. They go to
benchmarks/results/rtx_build.json. The engines go to a temporary cache.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from segue.export.families.graph import Graph

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common
from benchmarks.export.random_weights import graphs_of, parameters, write

CAPABILITIES = (80, 86, 89, 120)  # of bundles
FULL_SIZE = (89,)  # capabilities of components at full size
USUAL = (128, 1)  # side of the plane in eighths of a pixel (1024 pixels) and batch
RANGE = ((32, 1), USUAL, (192, 2))
TEXT = {"sd3": 333, "flux2-klein": 512, "z-image": 512}  # tokens for the denoiser: 77 of CLIP and 256 of T5 for SD3
FACTOR = {"flux2-klein": 16}  # pixels of a latent's side
LENGTH = {"flux2-klein": 512, "z-image": 512}  # tokens of the text encoder
REFERENCES = (0, 4096, 4 * 4096)  # tokens of no, one and four reference pictures of a megapixel
NEEDS = 3.0  # times the bytes of the weights
FULL = (
    "sd3/text_encoder", "sd3/text_encoder_2", "sd3/text_encoder_3", "sd3/transformer", "sd3/vae",
    "longcat-image/text_encoder", "longcat-image/transformer", "longcat-image/vae",
    "sdxl/unet", "sdxl/vae",
    "sd3.5-medium/transformer", "sd3.5-large/transformer",
    "flux2-klein/text_encoder", "flux2-klein/transformer", "flux2-klein/vae",
    "z-image/text_encoder", "z-image/transformer", "z-image/vae",
    "swifti2v/text_encoder", "swifti2v/transformer", "swifti2v/vae", "swifti2v/detail_transformer",
    "swifti2v/detail_vae",
)  # fmt: skip


def main() -> None:
    parser = common.make_parser(__doc__, "rtx_build")
    parser.add_argument("what", choices=("bundle", "full"))
    parser.add_argument("names", nargs="*", help="directories of bundles, or components such as sdxl/unet")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    results = common.load(options.out, {})
    for name in options.names or (["bundles/emoji"] if options.what == "bundle" else FULL):
        with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
            os.environ["XDG_CACHE_HOME"] = scratch
            if options.what == "bundle":
                results.setdefault("bundles", {})[Path(name).name] = of_bundle(Path(name), Path(scratch))
            else:
                results.setdefault("full", {})[name] = full(name, Path(scratch))
        results |= common.header("tensorrt-rtx")
        common.write(options.out, results)


def of_bundle(source: Path, directory: Path) -> dict[str, Any]:
    """Build every component of a bundle in its own precision, and in bf16."""
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
    """Build the engines of one component folder with random weights, for SM 89 in fp16, or return why not."""
    from segue.engines.tensorrt.build import Settings
    from segue.engines.tensorrt.child import build_apart
    from segue.errors import EngineError

    graphs = graphs_of(name)
    needed = int(NEEDS * 2 * parameters(graphs))
    if needed > (free := psutil.virtual_memory().available):
        return {"not built": f"it needs up to {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} were free"}
    rows: dict[str, Any] = {}
    for graph, path in zip(graphs, write(graphs, directory), strict=True):
        bounds = RANGE if name == "sd3/transformer" else (USUAL,) * 3
        points = [sized(name, graph, *bound, tokens) for bound, tokens in zip(bounds, REFERENCES, strict=True)]
        profile = {port.name: tuple(port.sized(point) for point in points) for port in graph.inputs}
        plan = directory / "engine.plan"
        try:
            built = build_apart(path, Settings("tensorrt-rtx", FULL_SIZE, (profile,)), plan)  # type: ignore[arg-type]
        except EngineError as error:
            rows[graph.component] = {"refused": str(error)}
        else:
            rows[graph.component] = {
                "seconds": round(built.seconds, 1), "peak_bytes": built.peak, "bytes": plan.stat().st_size,
                "weights": path.with_name("model.safetensors").stat().st_size,
                "layers": built.layers, "fused": built.fused, "decomposed": built.decomposed, "capabilities": FULL_SIZE,
                "largest": {port: shapes[2] for port, shapes in profile.items() if "cache" not in port},
            }  # fmt: skip
        print(graph.component, rows[graph.component], flush=True)
        plan.unlink(missing_ok=True)
    return rows


def sized(name: str, graph: Graph, side: int, batch: int, references: int) -> dict[str, int]:
    """Return the sizes for a picture of `side` eighths of a pixel; for a video, eight times those of its trial."""
    model, _ = name.split("/")
    if model == "swifti2v":
        return {dim: 8 * size for dim, size in graph.trials[-1].items()}
    family, _ = common.full_size(model)
    plane = 8 * side if graph.component == "vae_encoder" else 8 * side // FACTOR.get(family, 8)
    return {
        "batch": batch, "height": plane, "width": plane, "references": references,
        "length": LENGTH.get(family, 77), "text": TEXT.get(family, 77),
    }  # fmt: skip


def row(record: Any, weights: int) -> dict[str, Any]:
    return {
        "seconds": round(record.seconds, 1), "peak_bytes": record.peak, "bytes": record.bytes, "weights": weights,
        "layers": record.layers, "fused": record.fused, "decomposed": record.decomposed,
        "capabilities": record.fingerprint.capabilities, "profiles": record.fingerprint.profiles,
    }  # fmt: skip


if __name__ == "__main__":
    main()
