"""Time that the distillation loop adds to its network calls: the loop and the bare calls in turns, in one run.

    python benchmarks/training/cdm_throughput.py bundles/emoji-teacher [--iterations 12] [--batch 32]

One side is `Distillation.iterate`. The other side makes the same calls of the same networks on the same shapes, as many
without gradient and as many with a backward pass. It has no draws, losses, optimisers or averages. The first turn of
each side is not counted. The result is the ratio bare / loop of each pair of iterations (one of the two updates the
student), with its spread. The target is 0.85. The results go to benchmarks/results/cdm_throughput.json.
"""

import argparse
import sys
import time
from collections.abc import Iterable
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

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common


def main() -> None:
    parser = common.make_parser(__doc__, "cdm_throughput")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--directory", type=Path, default=Path("runs/cdm-throughput"))
    options = parser.parse_args()
    if options.iterations < 2:
        parser.error("--iterations must be 2 or more")
    with plain_attention(training_device()):
        results = compared(built(options), options)
    common.report(options.out, results)


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
    spread = common.spread(ratios, 3)
    return {
        "bare / loop, median": spread["median"],
        "lowest": spread["lowest"],
        "highest": spread["highest"],
        "pairs of iterations": len(ratios),
        "seconds an iteration, loop": round(seconds["loop"] / len(ratios) / 2, 3),
        "batch": options.batch,
        "device": str(training.device),
        **common.header("torch", "diffusers"),
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
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def inputs(training: Distillation, step: int) -> tuple[Draws, Condition]:
    """Return the draws and the text of an iteration."""
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
