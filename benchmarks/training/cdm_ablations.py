"""The paper's ablations of CDM on a small teacher: each variant has several training seeds and the same noise.

    python benchmarks/training/cdm_ablations.py runs/emoji-small-teacher/checkpoint --conditions runs/emoji-conditions

A variant changes keys of one recipe and nothing else. Each run trains, is measured, and leaves its scores below
--directory. A repeated command skips the runs that have scores, so it continues where it stopped. The results are the
mean over seeds with its 95 % interval, and the same for the difference from the whole method, seed by seed. They go to
benchmarks/results/cdm_ablations.json. A run that the divergence guard stopped counts as diverged and has no scores.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from segue.training.evaluation.evaluate import Bench, EvalSpec, Subject, even_schedule
from segue.training.evaluation.measures import lpips
from segue.training.loop.device import training_device
from segue.training.pictures.dataset import Pictures
from segue.training.pictures.sampling import load_pipeline

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common
from benchmarks.training.ablation import WHOLE, compared, done_once, options_of

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    WHOLE: {},
    "no CA": {"terms": {"ca": 0.0}},
    "no DM": {"terms": {"dm": 0.0}},
    "no CDM": {"terms": {"cdm": 0.0}},
    "CA alone": {"terms": {"dm": 0.0, "cdm": 0.0}},
    "DM alone": {"terms": {"ca": 0.0, "cdm": 0.0}},
    "CDM alone": {"terms": {"ca": 0.0, "dm": 0.0}},
    "fixed schedule": {"schedule": {"schedule": "fixed"}},
    "Gaussian point": {"terms": {"point": "gaussian"}},
    "point on the trajectory": {"terms": {"point": "on-trajectory"}},
    "full-trajectory target": {"terms": {"target": "full-trajectory"}},
}
STEPS = 4
OFF_GRID = (3, 6)
REFERENCES = {"the guided teacher": 3.0, "the teacher without guidance": 1.0}


def main() -> None:
    parser = common.make_parser(__doc__, "cdm_ablations")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--conditions", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("runs/data/emoji"))
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--fake-learning-rate", type=float, default=2e-4)
    parser.add_argument("--prompts", type=int, default=300)
    options = options_of(parser, "cdm_ablations", list(VARIANTS), seeds=5)
    references(options)
    results = compared(options, scored) | {
        "teacher": json.loads((options.directory / "references.json").read_text()),
        "iterations": options.iterations,
        "batch": options.batch,
        "rates": [options.learning_rate, options.fake_learning_rate],
        "prompts": options.prompts,
    }
    common.report(options.out, results)


def bench_of(options: argparse.Namespace) -> Bench:
    """Return the prompts and the measuring networks."""
    return Bench(Pictures(options.data), options.data, EvalSpec(prompts=options.prompts), training_device())


def references(options: argparse.Namespace) -> None:
    """Draw the teacher's pictures once; every run is compared with them."""
    if (options.directory / "references.json").exists():
        return
    bench, teacher = bench_of(options), load_pipeline(options.teacher, training_device())
    drawn, scores = {}, {}
    for name, guidance in REFERENCES.items():
        subject = Subject(name, teacher, even_schedule(28, 3.0), guidance)
        drawn[name] = bench.draw(subject, bench.chosen, 0).clamp(-1, 1).contiguous()
        scores[name] = bench.score(drawn[name], bench.chosen)
    few = Subject("few", teacher, even_schedule(STEPS, 3.0), max(REFERENCES.values()))
    scores[f"the guided teacher, {STEPS} steps"] = bench.score(bench.draw(few, bench.chosen, 0), bench.chosen)
    save_file(drawn, options.directory / "references.safetensors")
    (options.directory / "references.json").write_text(json.dumps(scores))


def scored(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Return the scores of one run."""
    recipe = recipe_of(options, variant, seed)
    return done_once(options, variant, seed, recipe, lambda checkpoint: measured(options, checkpoint))


def recipe_of(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a variant; variants differ only in their own keys and the seed."""
    changed = VARIANTS[variant]
    return {
        "cdm": {
            "teacher": str(options.teacher),
            "conditions": str(options.conditions),
            "size": [128, 128],
            "tokens": 24,
            "student_every": 1,
            "fake_learning_rate": options.fake_learning_rate,
            "schedule": {"longest": 8, "lowest": 0.25, "highest": 0.95, "shift": 3.0} | changed.get("schedule", {}),
            "terms": {"guidance": 3.0} | changed.get("terms", {}),
        },
        "loop": {
            "steps": options.iterations,
            "batch": options.batch,
            "learning_rate": options.learning_rate,
            "beta2": 0.99,
            "warmup": 50,
            "decay": options.iterations // 3,
            "save_every": max(options.iterations // 4, 1),
            "grid_every": options.iterations,
            "seed": seed,
        },
    }


def measured(options: argparse.Namespace, checkpoint: Path) -> dict[str, float]:
    """Return the scores of a student; every student gets the same noise."""
    bench, student = bench_of(options), load_pipeline(checkpoint, training_device())
    pictures = bench.draw(Subject("student", student, even_schedule(STEPS, 3.0), 1.0), bench.chosen, 0)
    scores = bench.score(pictures, bench.chosen)
    for name, reference in load_file(options.directory / "references.safetensors").items():
        scores[f"LPIPS to {name}"] = lpips(pictures, reference).mean().item()
    few = bench.chosen[: options.prompts // 2]
    on = bench.score(pictures[: len(few)], few)["KID x 1e3"]
    rungs = [Subject("rung", student, even_schedule(steps, 3.0), 1.0) for steps in OFF_GRID]
    off = [bench.score(bench.draw(rung, few, 0), few)["KID x 1e3"] for rung in rungs]
    scores["KID x 1e3, mean off the grid - on it"] = sum(off) / len(off) - on
    return scores


if __name__ == "__main__":
    main()
