"""One bundle on two of this machine's targets: parity of every component, step and picture, then pictures in turns.

    python benchmarks/engines/engine_targets.py emoji ort-cpu ort-cuda [--rounds 15] [--size 128x128]
    python benchmarks/engines/engine_targets.py emoji-motion ort-cpu ort-cuda --rounds 5    # videos of one window

The first target is the baseline of the ratios. Both models are open and warm, and draw the same prompt and seed. Each
target has two times: from opening to its first picture or video, and the median of the later ones. Parity is that of
`segue verify --engines`, compared with ort-cpu. The exit code is 1 if parity is beyond its gates. The script writes
one entry per bundle and machine to benchmarks/results/engine_targets.json.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import segue
from segue.engines.targets import find_target
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.diagnostics.compare import REFERENCE, as_json, compare
from segue.runtime.request import Request

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

PROMPTS = ("red apple", "pizza", "woman astronaut medium skin tone", "flag japan, twemoji")


def main() -> int:
    parser = common.make_parser(__doc__, "engine_targets", rounds=15)
    parser.add_argument("bundle")
    parser.add_argument("targets", nargs=2)
    parser.add_argument("--size", default=None, help="height x width")
    options = parser.parse_args()
    size = tuple(int(side) for side in options.size.split("x")) if options.size else None
    content = read_manifest(options.bundle)

    def request(turn: int) -> Any:
        prompt = PROMPTS[turn % len(PROMPTS)]
        if content.video is None:
            return Request(prompt, seed=turn, size=size)
        image = (np.indices((*content.sizes.default, 3)).sum(0) * (5 + turn) % 256).astype(np.uint8)
        return segue.AnimationRequest(image, prompt, seed=turn, size=size)

    def draw(model: segue.Model, turn: int) -> None:
        if content.video is None:
            model.render(request(turn))
        else:
            for _ in model.frames(request(turn)):
                pass

    seconds: dict[str, list[float]] = {name: [] for name in options.targets}
    first: dict[str, float] = {}
    models = {}
    try:
        for name in options.targets:
            started = time.perf_counter()
            models[name] = segue.open(options.bundle, target=name)
            draw(models[name], 0)
            first[name] = time.perf_counter() - started
        for turn in range(options.rounds + 2):
            for name, model in list(models.items())[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                draw(model, turn)
                if turn > 1:  # the first two rounds find algorithms and fill caches
                    seconds[name].append(time.perf_counter() - started)
        bundle = next(iter(models.values())).bundle
    finally:
        for model in models.values():
            model.close()
    others = [find_target(name) for name in options.targets if name != REFERENCE]
    found = compare(bundle, [t.name for t in others], request(0))
    faults = {c.target: c.faults(bundle) for c in found}
    base, other = (seconds[name] for name in options.targets)
    ratios = [a / b for a, b in zip(base, other, strict=True)]
    what = "picture" if content.video is None else f"video of {content.video.frames} frames"
    entry = {
        "bundle": bundle.manifest.name,
        "targets": options.targets,
        "size": list(size or bundle.manifest.sizes.default),
        "rounds": options.rounds,
        f"until the first {what} (s)": {name: round(value, 3) for name, value in first.items()},
        f"a {what}, median (s)": {name: round(statistics.median(taken), 4) for name, taken in seconds.items()},
        f"{options.targets[0]} / {options.targets[1]}": common.spread(ratios, 2),
        "parity with ort-cpu": [_rounded(as_json(c)) for c in found],
        "beyond the gates": faults,
        **common.header("segue", "onnxruntime"),
    }
    print(json.dumps(entry, indent=1))
    common.merge(options.out, entry, same=("bundle", "targets", "size", "GPUs", "cores"))
    return common.exit_code(
        *(common.Gate(f"faults of {name}, compared with {REFERENCE}", len(of), 0) for name, of in faults.items())
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
