"""One picture of an int8 bundle compared with the same picture of the original bundle, in turns.

    segue quantize emoji -o runs/emoji-int8
    python benchmarks/runtime/int8_speed.py emoji runs/emoji-int8

The results are seconds (median, lowest, highest) and their ratio, the bytes of both bundles, the bytes of the first
one in fp32, and the PSNR that the quantized bundle states. They go to benchmarks/results/int8_speed.json.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import segue
from segue.runtime.pipeline import Model

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common


def main() -> None:
    parser = common.make_parser(__doc__, "int8_speed", rounds=9)
    parser.add_argument("bundle")
    parser.add_argument("quantized")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    with segue.open(options.bundle) as before, segue.open(options.quantized) as after:
        models = {"before": before, "int8": after}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for number in range(options.rounds + 1):  # the first round loads
            for name, model in models.items():
                taken = one(model, number, options.steps)
                if number:
                    seconds[name].append(taken)
        ratios = [a / b for a, b in zip(seconds["before"], seconds["int8"], strict=True)]
        content, small = before.bundle.manifest, after.bundle.manifest
        whole = {file: f.bytes for file, f in content.files.items()}
        weights = {file for c in content.components.values() for file in c.weights}
        width = 4 if content.components["vae_decoder"].precision == "fp32" else 2
        parameters = sum(whole[file] for file in weights) // width
        fp32 = sum(n for file, n in whole.items() if file not in weights) + 4 * parameters
    assert small.fidelity is not None
    results = {
        "picture, s": {name: common.spread(values) for name, values in seconds.items()},
        "times as fast": common.spread(ratios),
        "bytes": {"before": sum(whole.values()), "fp32": fp32, "int8": sum(f.bytes for f in small.files.values())},
        "psnr": small.fidelity.psnr,
        "steps": options.steps,
        "onnxruntime": common.version_of("onnxruntime"),
        **common.header("segue", "onnxruntime"),
    }
    common.report(options.out, results)


def one(model: Model, seed: int, steps: int) -> float:
    """Return the seconds of one picture without guidance."""
    started = time.perf_counter()
    model.generate("a red heart", seed=seed, steps=steps, guidance=1.0)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
