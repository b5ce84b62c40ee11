"""Plan a distillation without its weights: networks, bytes for each device, calls for each update, time."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import TrainingError
from ..loop.device import fast_dtype, training_device
from ..loop.run import LoopSpec
from .distil import Place
from .families import Family, find_family
from .spec import CdmSpec, updates

# Multiples of a call without gradient, in products. A backward pass costs two calls. Checkpointing adds one more.
TRAINED, RECOMPUTED = 3, 4


@dataclass(frozen=True)
class Plan:
    """The needs of one process. Bytes are for one device."""

    parameters: int  # of the transformer
    trained: int  # of each trained role: all of them, or the adapter's
    bytes: dict[str, int]  # by part
    calls: dict[str, float]  # mean calls for each student update and sample, by purpose
    flops: int  # of a call without gradient for one sample
    seconds: float  # of one update of the student, at `rate`
    rate: float  # this device's operations per second in a large product
    updates: int  # of the student over the whole run

    @property
    def forwards(self) -> float:
        """Return the work of a student update in calls without gradient for each sample."""
        return sum(self.calls.values())


def make_plan(spec: CdmSpec, loop: LoopSpec, world: int = 1) -> Plan:
    """Return the plan of a recipe for `world` processes. It needs no teacher's weights."""
    family = find_family(spec.family)
    network = empty_transformer(spec, family)
    parameters = sum(p.numel() for p in network.parameters())
    trained = adapter_parameters(network, family, spec.rank) if spec.rank else parameters
    whole = len(Place(0, world).samples(loop.batch))
    part = min(spec.micro or whole, whole)
    flops, kept = measure(spec, family)
    rate = product_rate()
    calls = mean_calls(spec)
    forwards = sum(calls.values())
    split = world if spec.shard else 1
    copies = 1 if spec.rank else 3
    sizes = {
        "weights": 4 * parameters * copies // split + (8 * trained // split if spec.rank else 0),
        "gradients": 4 * 2 * trained // split,
        "moments": 8 * 2 * trained // split,
        "average": 4 * trained // split,
        "activations": kept * part,
        "latents": 4 * 16 * math.prod(family.shape(network.config, *spec.size)) * whole,
    }
    return Plan(
        parameters,
        trained,
        sizes,
        calls,
        flops,
        forwards * flops * whole / rate,
        rate,
        updates(spec, loop.steps),
    )


def mean_calls(spec: CdmSpec) -> dict[str, float]:
    """Return the mean work of a student update by purpose, in calls without gradient for each sample."""
    schedule, terms = spec.schedule, spec.terms
    lengths = [len(schedule.fixed)] if schedule.schedule == "fixed" else range(1, schedule.longest + 1)
    steps = statistics.mean(_steps_a_sample(length, terms.target == "full-trajectory") for length in lengths)
    with_gradient = RECOMPUTED if spec.checkpointing else TRAINED
    anchored, off = bool(terms.ca or terms.dm or terms.regression), bool(terms.cdm)
    matched = bool(terms.dm) + off
    return {
        "roll-out": steps * spec.student_every,
        "fake teacher": with_gradient * spec.student_every * terms.matches,
        "student": with_gradient * (anchored + off),
        "real teacher": 2 * bool(terms.ca) + matched * (1 if terms.matching == 1 else 2),
        "fake score": matched,
    }


def _steps_a_sample(length: int, to_the_end: bool) -> float:
    """Return a sample's mean steps in a roll-out of `length`, with `rows_at`'s quarters of a batch."""
    return length if to_the_end else sum(math.ceil(4 * left / length) / 4 for left in range(1, length + 1))


def empty_transformer(spec: CdmSpec, family: Family) -> Any:
    """Return the transformer on the meta device, from the teacher's config or the shipped one of that name."""
    own = Path(spec.teacher) / family.part / "config.json"
    shipped = resources.files(f"{__package__}.configs").joinpath(f"{Path(spec.teacher).name}.json")
    if not own.is_file() and not shipped.is_file():
        raise TrainingError(
            f"{spec.teacher} has no {family.part}/config.json, and Segue ships no config of that name. Name the "
            "teacher's directory as cdm.teacher."
        )
    config = json.loads(own.read_text() if own.is_file() else shipped.read_text())
    with torch.device("meta"):
        return family.network_class().from_config(config)


def adapter_parameters(network: nn.Module, family: Family, rank: int) -> int:
    """Return the number of parameters that LoRA of `rank` adds for one role."""
    return sum(
        rank * (module.in_features + module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(family.adapted)
    )


def measure(spec: CdmSpec, family: Family) -> tuple[int, int]:
    """Return the operations of a call for one sample, and the most bytes of its backward pass.

    Computes nothing: the network is on the meta device. With checkpointing the bytes hold every block's input, and one
    block's activations, which the backward pass computes again.
    """
    flops, kept = _measured(spec, family, spec.checkpointing)
    if spec.checkpointing:
        network = empty_transformer(spec, family)
        blocks = sum(type(module).__name__ in family.blocks for module in network.modules())
        kept += _measured(spec, family, False)[1] // blocks
    return flops, kept


def _measured(spec: CdmSpec, family: Family, checkpointing: bool) -> tuple[int, int]:
    network = nn.Module.to(empty_transformer(spec, family), torch.bfloat16)  # diffusers' `to` warns without reason
    if spec.rank:
        from peft import LoraConfig

        network.requires_grad_(False)
        with torch.device("meta"):
            network.add_adapter(LoraConfig(r=spec.rank, target_modules=list(family.adapted)))
            nn.Module.to(network, torch.bfloat16)
    if checkpointing:
        network.enable_gradient_checkpointing()
    with torch.device("meta"):
        shape = family.shape(network.config, *spec.size)
        latents = torch.empty(1, *shape, dtype=torch.bfloat16)
        shapes = family.text(network.config, spec.tokens) | family.beside(network.config, shape)
        text = {name: torch.empty(1, *shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        level = torch.empty(1)
    lengths = family.lengths(network.config, shape, spec.tokens)
    return counted(network, lambda: family.velocity(network, latents, level, text), lengths)


def counted(network: nn.Module, call: Callable[[], Any], lengths: set[int]) -> tuple[int, int]:
    """Return the operations of `call`, and the bytes that it keeps for a backward pass, without weights.

    Skips matrices with both sides in `lengths`, the lengths of sequences: attention keeps them on the meta device, but
    fused kernels do not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    held = [p.untyped_storage() for p in network.parameters()]  # alive, because Python reuses identities
    weights = {id(storage) for storage in held}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if id(storage) not in weights and not lengths.issuperset(tensor.shape[-2:]):
            kept[id(storage)] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return counter.get_total_flops(), sum(kept.values())


def product_rate(side: int = 2048, seconds: float = 0.5) -> float:
    """Return this device's operations per second in a square product of training's dtype."""
    device = training_device()
    a, b = (torch.ones(side, side, device=device, dtype=fast_dtype(device)) for _ in range(2))
    _ = (a @ b)[0, 0].item()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        _ = (a @ b)[0, 0].item()
        done += 1
    return 2 * side**3 * done / (time.perf_counter() - started)


def described(plan: Plan, world: int) -> list[tuple[str, str]]:
    """Return the plan as rows of a table."""
    trained = "all" if plan.trained == plan.parameters else f"{plan.trained / 1e6:.1f} M (adapter)"
    total = sum(plan.bytes.values())
    return [
        ("transformer", f"{plan.parameters / 1e6:.1f} M parameters, {plan.flops / 1e12:.3g} TFLOP per call and sample"),
        ("trained, of student and fake teacher each", trained),
        *((f"bytes, {name}", f"{size / 2**30:.2f} GiB") for name, size in plan.bytes.items()),
        ("bytes, all of these", f"{total / 2**30:.2f} GiB on each of {world}"),
        *((f"calls, {name}", f"{count:.1f}") for name, count in plan.calls.items()),
        ("calls, all of these", f"{plan.forwards:.1f} per sample and update of the student (3 or 4 with gradient)"),
        ("one update of the student", f"{plan.seconds:.3g} s at {plan.rate / 1e12:.3g} TFLOP/s, measured here"),
        ("the run", f"{plan.updates} updates of the student, {_duration(plan.updates * plan.seconds)} on {_here()}"),
    ]


def _duration(seconds: float) -> str:
    """Return a long time in hours, days or years."""
    hours = seconds / 3600
    if hours < 100:
        return f"{hours:.3g} h"
    return f"{hours / 24:.0f} days" if hours < 24 * 1000 else f"{hours / 24 / 365:.0f} years"


def _here() -> str:
    return "this GPU" if training_device().type == "cuda" else "this processor"
