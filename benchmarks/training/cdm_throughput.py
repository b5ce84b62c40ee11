"""How much the distillation loop adds to its network calls: both timed in turns, in one run.

    python benchmarks/cdm_throughput.py bundles/emoji-teacher [--iterations 12] [--batch 32]

One side is `Distillation.iterate`; the other makes the same calls of the same networks on the same shapes, without
draws, losses, optimisers and averages: as many without gradient, as many with a backward pass. The first turn of each
is not counted. Prints the ratio bare / loop of each pair of iterations (one of them with an update of the student) with
its spread; the target is 0.85. Writes benchmarks/results/cdm_throughput.json.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from segue.training.cdm.data.conditions import Conditions
from segue.training.cdm.data.encode import encode_prompts
from segue.training.cdm.distil import Distillation
from segue.training.cdm.draws import Draws, ScheduleSpec, draw
from segue.training.cdm.families import FAMILIES, Condition
from segue.training.cdm.networks import FullNetworks, load_teacher
from segue.training.cdm.spec import CdmSpec
from segue.training.cdm.terms import rows_at
from segue.training.loop.device import plain_attention, training_device
from segue.training.loop.run import LoopSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--directory", type=Path, default=Path("runs/cdm-throughput"))
    options = parser.parse_args()
    if options.iterations < 2:
        parser.error("--iterations is below 2")
    with plain_attention(training_device()):
        results = compared(built(options), options)
    print(json.dumps(results, indent=1))
    (Path(__file__).parent / "results/cdm_throughput.json").write_text(json.dumps(results, indent=1) + "\n")


def compared(training: Distillation, options: argparse.Namespace) -> dict:
    """Return both sides' times and their ratio."""
    ratios, seconds = [], {"loop": 0.0, "bare": 0.0}
    for pair in range(options.iterations // 2 + 1):
        steps = (2 * pair, 2 * pair + 1)
        prepared = {step: inputs(training, step) for step in steps}
        sides = [("loop", training.iterate), ("bare", lambda step, ready=prepared: bare(training, step, *ready[step]))]
        taken = dict.fromkeys(seconds, 0.0)
        for name, side in sides if pair % 2 else reversed(sides):
            for step in steps:
                wait(training.device)
                started = time.perf_counter()
                side(step)
                wait(training.device)
                taken[name] += time.perf_counter() - started
        if pair:
            ratios.append(taken["bare"] / taken["loop"])
            seconds = {name: seconds[name] + taken[name] for name in seconds}
    return {
        "bare / loop, median": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "pairs of iterations": len(ratios),
        "seconds an iteration, loop": round(seconds["loop"] / len(ratios) / 2, 3),
        "batch": options.batch,
        "cores": os.cpu_count(),
        "device": str(training.device),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }


def built(options: argparse.Namespace) -> Distillation:
    """Return a distillation of the teacher on a handful of prompts, with the emoji recipe's schedule."""
    text = options.directory / "conditions"
    if not text.exists():
        options.directory.mkdir(parents=True, exist_ok=True)
        prompts = options.directory / "prompts.txt"
        prompts.write_text("".join(f"a picture of number {i}\n" for i in range(64)))
        encode_prompts(options.teacher, "sd3", prompts, text, lambda done, total: None)
    family = FAMILIES["sd3"]
    spec = CdmSpec(str(options.teacher), str(text), size=(128, 128), schedule=ScheduleSpec(longest=8))
    loop = LoopSpec(steps=10_000, batch=options.batch, learning_rate=1e-5)
    device = training_device()
    teacher = load_teacher(options.teacher, family)
    shape = family.shape(teacher.config, *spec.size)
    return Distillation(FullNetworks(teacher, family, False, device), [Conditions(text)], shape, spec, loop, device)


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def inputs(training: Distillation, step: int) -> tuple[Draws, Condition]:
    """Return the draws of an iteration and some text."""
    spec, batch = training.spec, training.loop.batch
    draws = draw(spec.schedule, training.shape, training.loop.seed, step, range(batch), batch).to(training.device)
    return draws, {name: t.to(training.device) for name, t in training.kinds[0].empty(batch).items()}


def bare(training: Distillation, step: int, draws: Draws, text: Condition) -> None:
    """Make the calls of one iteration and nothing else."""
    spec = training.spec
    updates = (step + 1) % spec.student_every == 0

    def forward(role: str, sizes: Iterable[int]) -> None:
        with torch.no_grad():
            for size in sizes:
                taken = {name: tensor[:size] for name, tensor in text.items()}
                training.networks.velocity(role, draws.start[:size], draws.cdm.level[:size], taken)

    def both(role: str, times: int) -> None:
        for _ in range(times):
            training.networks.velocity(role, draws.start, draws.cdm.level, text).mean().backward()

    batch = len(draws.start)
    forward("student", map(len, rows_at(draws)))
    both("fake", 1)
    if updates:
        both("student", 2)
        forward("real", [batch] * 4)
        forward("fake", [batch] * 2)
    for role in ("student", "fake"):
        for p in training.parameters[role].values():
            p.grad = None


if __name__ == "__main__":
    main()
