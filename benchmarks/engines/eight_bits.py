"""Cost of a denoiser in 8 bits, in pictures and bytes, and the engines that TensorRT-RTX builds of it.

    python benchmarks/engines/eight_bits.py emoji

The script quantizes the bundle as w8a8 and as fp8. It compares pictures of eight prompts with those of the original
bundle, from the same noise, on the processor. It builds the denoiser's engine for each compute capability separately.
The results go to benchmarks/results/eight_bits.json. Nothing runs on a GPU.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from segue.errors import EngineError
from segue.export.quantize.qdq import KINDS
from segue.export.quantize.quantize import quantize
from segue.runtime.bundle import reader as bundles
from segue.runtime.bundle.families import family_of
from segue.runtime.engine_cache.build import BuildRequest, build

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

CAPABILITIES = (80, 86, 89, 120)


def main() -> None:
    parser = common.make_parser(__doc__, "eight_bits")
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
    results |= common.header("onnxruntime", "tensorrt-rtx")
    common.report(options.out, results)


def weights(content: Any) -> int:
    """Return the bytes of the denoiser's weight files."""
    return sum(content.files[file].bytes for file in content.components[family_of(content).denoiser].weights)


def engines(opened: bundles.Bundle) -> dict[str, Any]:
    """Return seconds and bytes of the denoiser's engine for each capability, or the error."""
    found: dict[str, Any] = {}
    for capability in CAPABILITIES:
        request = BuildRequest("tensorrt-rtx", (capability,), components=(family_of(opened.manifest).denoiser,))
        try:
            (made,) = build(opened, request)
        except EngineError as error:
            found[f"SM {capability}"] = error.what
        else:
            record = made.entry.record
            found[f"SM {capability}"] = {"seconds": round(record.seconds, 1), "bytes": record.bytes}
    return found


if __name__ == "__main__":
    main()
