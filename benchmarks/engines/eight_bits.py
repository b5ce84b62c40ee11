"""What a denoiser in 8 bits costs in pictures and bytes, and which engines TensorRT-RTX builds of it.

    python benchmarks/eight_bits.py emoji

Quantizes the bundle as w8a8 and as fp8, compares pictures of eight prompts with those of the bundle itself, from the
same noise, on the processor, and builds the denoiser's engine for each compute capability by itself. Prints and writes
benchmarks/results/eight_bits.json. Nothing is run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segue.errors import EngineError
from segue.export.quantize.qdq import KINDS
from segue.export.quantize.quantize import quantize
from segue.runtime.bundle import reader as bundles
from segue.runtime.bundle.families import family_of
from segue.runtime.engine_cache.build import BuildRequest, build

RESULTS = Path(__file__).parent / "results/eight_bits.json"
CAPABILITIES = (80, 86, 89, 120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    options = parser.parse_args()
    opened = bundles.read(options.bundle)
    results: dict[str, Any] = {"bundle": opened.manifest.name, "own precision": engines(opened)}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            made = quantize(opened.directory, Path(scratch) / kind, kind=kind)
            assert made.fidelity is not None
            results[kind] = {
                "PSNR, dB": round(made.fidelity.psnr, 1),
                "pictures": made.fidelity.pictures,
                "weights of the denoiser, bytes": weights(made),
                "engine": engines(bundles.read(Path(scratch) / kind)),
            }
    results["own weights of the denoiser, bytes"] = weights(opened.manifest)
    results["versions"] = {name: version(name) for name in ("onnxruntime", "tensorrt-rtx")}
    text = json.dumps(results, indent=1)
    print(text)
    RESULTS.write_text(text + "\n")


def weights(content: Any) -> int:
    """Return the bytes of the denoiser's weight files."""
    return sum(content.files[file].bytes for file in content.components[family_of(content).denoiser].weights)


def engines(opened: bundles.Bundle) -> dict[str, Any]:
    """Return seconds and bytes of the denoiser's engine for each capability, or why there is none."""
    found: dict[str, Any] = {}
    for capability in CAPABILITIES:
        request = BuildRequest("tensorrt-rtx", (capability,), components=(family_of(opened.manifest).denoiser,))
        try:
            (made,) = build(opened, request)
        except EngineError as error:
            found[f"SM {capability}"] = str(error).partition("run_passes] ")[2][:150] or str(error)[:150]
        else:
            record = made.entry.record
            found[f"SM {capability}"] = {"seconds": round(record.seconds, 1), "bytes": record.bytes}
    return found


if __name__ == "__main__":
    main()
