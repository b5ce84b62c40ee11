"""How each term of a distillation changes the student's contrast, by noise level, at the last saved state of its run.

    python benchmarks/training/cdm_forces.py runs/emoji-cdm [--iterations 16]

The push of a sample is the part of its normalised direction w Delta along its estimate X, divided by |X|. Above 0 the
term asks for more contrast, below 0 for less. If a level is in balance, its pushes add up to 0. The script prints JSON:
means with 95 % intervals, the number of samples, and the root mean square of the estimates.
"""

import itertools
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch

from segue.training.cdm.losses import FLOOR, spread
from segue.training.cdm.run import distillation
from segue.training.cdm.terms import Pull
from segue.training.evaluation.measures import interval
from segue.training.loop.device import plain_attention, training_device
from segue.training.loop.recipe_file import fill
from segue.training.loop.run import LoopSpec
from segue.training.loop.state import load_state

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

EDGES = (0.0, 0.3, 0.6, 0.8, 0.97, 1.01)


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--iterations", type=int, default=16)
    options = parser.parse_args()
    state = max(options.run.glob("state-*"))
    saved = json.loads((state / "state.json").read_text())
    recipe = saved["recipe"]
    recipe["cdm"]["compile"] = False
    training = distillation(recipe, fill(LoopSpec, recipe["loop"], "loop"))
    load_state(state, training.tensors())
    pushes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    sizes: dict[str, list[float]] = defaultdict(list)
    with plain_attention(training_device()), torch.no_grad():
        for step in range(saved["step"], saved["step"] + options.iterations):
            for pulls in training.pulls(step):
                for name, pull in pulls.items():
                    pushes[name] += zip(pull.level.tolist(), push(pull), strict=True)
                    sizes[name] += pull.estimate.square().flatten(1).mean(1).sqrt().tolist()
    terms = {name: by_level(pushes[name], sizes[name]) for name in pushes}
    print(json.dumps({"step": saved["step"], "terms": terms}, indent=1))


def push(pull: Pull) -> list[float]:
    """Return <w Delta, X> / <X, X> of each sample."""
    gap = (pull.reference - pull.estimate).abs().flatten(1).mean(1).clamp_min(FLOOR)
    moved = pull.direction * spread(1 / gap, pull.direction)
    along = (moved * pull.estimate).flatten(1).sum(1) / pull.estimate.square().flatten(1).sum(1)
    return along.tolist()


def by_level(samples: list[tuple[float, float]], sizes: list[float]) -> dict[str, dict[str, object]]:
    """Return mean push and size of estimates in each range of levels."""
    rows: dict[str, dict[str, object]] = {}
    for low, high in itertools.pairwise(EDGES):
        here = [(value, size) for (level, value), size in zip(samples, sizes, strict=True) if low <= level < high]
        if len(here) > 1:
            rows[f"{low:g} to {high:g}"] = {
                "push": str(interval([value for value, _ in here])),
                "samples": len(here),
                "rms": round(sum(size for _, size in here) / len(here), 3),
            }
    return rows


if __name__ == "__main__":
    main()
