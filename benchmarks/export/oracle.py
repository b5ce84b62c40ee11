"""The emoji bundle against diffusers' StableDiffusion3Pipeline: 8 prompts x 3 sizes x 2 grids, in fp32 and fp16.

    python benchmarks/oracle.py bundles/emoji

The bundle itself is compared (fp16), and so is an fp32 export of the checkpoint that it unpacks to; diffusers computes
in fp32. Gates: fp32 latents within 1e-4 (relative L2) and pictures at 60 dB or more; fp16 pictures at 35 dB or more.
Writes benchmarks/results/oracle.json.
"""

import argparse
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from segue.export.checks.oracle import Case, compare
from segue.export.export import export
from segue.export.unpack import unpack
from segue.runtime.bundle.reader import read

PROMPTS = (
    "a red heart",
    "pizza",
    "woman astronaut medium skin tone",
    "grinning face, noto",
    "flag japan, twemoji",
    "a butterfly",  # a held-out name
    "purple square",  # a held-out combination
    "",
)
SIZES = ((128, 128), (96, 160), (256, 256))
GATES = {"fp32": (1e-4, 60.0), "fp16": (float("inf"), 35.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/oracle.json")
    options = parser.parse_args()
    grids = ({"steps": 28}, {"sigmas": (1.0, 0.75, 0.5, 0.25)})
    guidance = read(options.bundle).manifest.sampler.guidance
    cases = [Case(prompt, size, guidance, **grid) for prompt in PROMPTS for size in SIZES for grid in grids]
    results, passed = {}, True
    for precision, (most, least) in GATES.items():
        with tempfile.TemporaryDirectory() as folder:
            bundle = options.bundle
            if precision == "fp32":
                unpack(bundle, Path(folder) / "checkpoint")
                bundle = Path(folder) / "bundle"
                export(Path(folder) / "checkpoint", bundle, precision=precision, parity=False)
            found = list(compare(bundle, cases))
        worst = max(d.latents for d in found)
        psnr = sorted(min(d.psnr, 99.0) for d in found)
        passed &= worst <= most and psnr[0] >= least
        results[precision] = {
            "cases": len(found),
            "worst relative L2 of latents": worst,
            "lowest PSNR (dB)": round(psnr[0], 1),
            "median PSNR (dB, equal pictures count as 99)": round(psnr[len(psnr) // 2], 1),
        }
        print(precision, json.dumps(results[precision]), flush=True)
    results["machine"] = platform.processor() or platform.machine()
    results["versions"] = {name: version(name) for name in ("torch", "diffusers", "onnxruntime")}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print("within the gates" if passed else "OUTSIDE the gates")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
