"""Code that the ablation scripts share: runs that are done once, and their summary compared with the whole method."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from segue.errors import TrainingError
from segue.training.evaluation.measures import interval
from segue.training.loop.device import training_device
from segue.training.recipe import train

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

WHOLE = "whole"


def options_of(parser: argparse.ArgumentParser, name: str, variants: list[str], seeds: int) -> argparse.Namespace:
    """Add the options that every ablation has, and return the parsed ones; `name` names the directory of the runs."""
    parser.add_argument("--directory", type=Path, default=Path("runs") / name.replace("_", "-"))
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    return options


def compared(
    options: argparse.Namespace, scored: Callable[[argparse.Namespace, str, int], dict[str, Any]]
) -> dict[str, Any]:
    """Run every variant with every seed, `--processes` at a time, and return the summary."""
    jobs = [(options, variant, seed) for seed in range(options.seeds) for variant in options.variants]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        done = list(pool.map(scored, *zip(*jobs, strict=True)))
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in options.variants}
    for (_, variant, _), scores in zip(jobs, done, strict=True):
        found[variant].append(scores)
    return {
        "variants": {variant: summary(runs, found.get(WHOLE, [])) for variant, runs in found.items()},
        "seeds": options.seeds,
        "longest run (s)": round(max(runs["seconds"] for of in found.values() for runs in of)),
        "device": str(training_device()),
        **common.header("torch", "diffusers"),
    }


def done_once(
    options: argparse.Namespace, variant: str, seed: int, recipe: dict[str, Any],
    measure: Callable[[Path], dict[str, float]],
) -> dict[str, Any]:  # fmt: skip
    """Train a run and measure its checkpoint, if there are no scores yet; return the scores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
    out = options.directory / f"{variant.replace(' ', '-')}-{seed}"
    scores = out / "scores.json"
    if not scores.exists():
        out.mkdir(exist_ok=True)
        path = out / "recipe.toml"
        path.write_text(to_toml(recipe))
        started = time.perf_counter()
        try:
            train(path, out / "run", lambda step, steps, figures: None)
        except TrainingError as error:
            found: dict[str, Any] = {"diverged": str(error)}
        else:
            found = {}
        seconds = time.perf_counter() - started
        scores.write_text(json.dumps({**(found or measure(out / "run/checkpoint")), "seconds": seconds}))
    return json.loads(scores.read_text())


def to_toml(recipe: dict[str, Any], prefix: str = "") -> str:
    """Return nested tables as TOML."""
    lines = []
    for name, value in recipe.items():
        if not isinstance(value, dict):
            lines.append(f"{name} = {json.dumps(value)}")
    for name, value in recipe.items():
        if isinstance(value, dict):
            lines.append(f"[{prefix}{name}]\n{to_toml(value, f'{prefix}{name}.')}")
    return "\n".join(lines)


def summary(runs: list[dict[str, Any]], whole: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and interval of every measure, and of its difference from the whole method, seed by seed."""
    diverged = [run["diverged"] for run in runs if "diverged" in run]
    return {
        "diverged": len(diverged),
        **({"how": diverged[0]} if diverged else {}),
        "scores": {measure: str(interval(values)) for measure, values in columns(runs)},
        "minus whole": {
            measure: str(interval(values))
            for measure, values in columns(
                [
                    {name: run[name] - base[name] for name in run if isinstance(run[name], float) and name in base}
                    for run, base in zip(runs, whole, strict=False)
                    if run is not base and "diverged" not in run and "diverged" not in base
                ]
            )
        },
    }


def columns(runs: list[dict[str, Any]]) -> Iterator[tuple[str, list[float]]]:
    """Yield each measure with its values over the runs that have it."""
    for measure in dict.fromkeys(name for run in runs for name in run if name not in ("diverged", "seconds")):
        yield measure, [run[measure] for run in runs if measure in run]
