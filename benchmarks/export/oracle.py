"""The emoji bundle compared with diffusers' StableDiffusion3Pipeline: 8 prompts x 3 sizes x 2 grids, in fp32 and fp16.

    python benchmarks/export/oracle.py bundles/emoji

The script compares the bundle itself (fp16) and an fp32 export of the checkpoint that it unpacks to. diffusers
computes in fp32. The exit code is 1 if a figure is beyond its gate:

- fp32: latents within 1e-4 (relative L2), pictures at 60 dB or more;
- fp16: pictures at 35 dB or more.

The results go to benchmarks/results/oracle.json.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from segue.export.checks.oracle import Case, compare
from segue.export.export import export
from segue.export.unpack import unpack
from segue.runtime.bundle.reader import read

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

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
GATES = {"fp32": (1e-4, 60.0), "fp16": (None, 35.0)}


def main() -> int:
    parser = common.make_parser(__doc__, "oracle")
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    grids = ({"steps": 28}, {"sigmas": (1.0, 0.75, 0.5, 0.25)})
    guidance = read(options.bundle).manifest.sampler.guidance
    cases = [Case(prompt, size, guidance, **grid) for prompt in PROMPTS for size in SIZES for grid in grids]
    results: dict[str, Any] = {}
    gates = []
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
        if most is not None:
            gates.append(common.Gate(f"{precision}, worst relative L2 of latents", worst, most))
        gates.append(common.Gate(f"{precision}, lowest PSNR (dB)", psnr[0], least, at_least=True))
        results[precision] = {
            "cases": len(found),
            "worst relative L2 of latents": worst,
            "lowest PSNR (dB)": round(psnr[0], 1),
            "median PSNR (dB, equal pictures count as 99)": round(psnr[len(psnr) // 2], 1),
        }
        print(precision, json.dumps(results[precision]), flush=True)
    header = common.header("torch", "diffusers", "onnxruntime")
    common.write(options.out, results | {"machine": header["processor"]} | header)
    return common.exit_code(*gates)


if __name__ == "__main__":
    sys.exit(main())
