"""Iterations of one process among those that torchrun started; the first one writes what came out."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from segue.training.cdm.data.conditions import Conditions
from segue.training.cdm.data.pairs import Pairs
from segue.training.cdm.distil import Distillation, Place
from segue.training.cdm.families import FAMILIES
from segue.training.cdm.networks import FullNetworks, LoraNetworks, load_teacher
from segue.training.cdm.spec import CdmSpec
from segue.training.loop import device
from segue.training.loop.run import LoopSpec


def build(teacher: Path, conditions: Path, options: dict, place: Place | None = None) -> Distillation:
    """Return the distillation that every test here looks at: batch 4, both networks at rates that show."""
    spec = CdmSpec(str(teacher), str(conditions), size=(32, 32), fake_learning_rate=1e-3)
    spec = dataclasses.replace(spec, **options)
    spec = dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, longest=4))
    loop = LoopSpec(steps=100, batch=4, learning_rate=1e-3, warmup=1, seed=3)
    family = FAMILIES["sd3"]
    network = load_teacher(teacher, family)
    if spec.rank:
        networks = LoraNetworks(network, family, spec.checkpointing, spec.rank, spec.alpha)
    else:
        mesh = init_device_mesh("cpu", (place.world,)) if spec.shard else None
        networks = FullNetworks(network, family, spec.checkpointing, torch.device("cpu"), mesh)
    pairs = Pairs(Path(spec.pairs)) if spec.pairs else None
    return Distillation(networks, [Conditions(conditions)], (4, 4, 4), spec, loop, torch.device("cpu"), place, pairs)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main() -> None:
    """Take the directories of teacher, embeddings and result, and options of CdmSpec as JSON."""
    teacher, conditions, out, options = sys.argv[1:]
    dist.init_process_group("gloo")
    place = Place(dist.get_rank(), dist.get_world_size())
    training = build(Path(teacher), Path(conditions), json.loads(options), place)
    figures = []
    for step in range(4):
        figures.append(training.iterate(step))
        with training.averaged():  # as a sample grid does: it must leave nothing behind
            next(training._parts(step))
    sharded = sum(isinstance(p, DTensor) for p in training.parameters["student"].values())
    tensors = {name: whole(tensor).clone().contiguous() for name, tensor in training.tensors().items()}
    if place.rank == 0:
        save_file(tensors, Path(out) / "tensors.safetensors")
        (Path(out) / "figures.json").write_text(
            json.dumps({"figures": figures, "sharded": sharded, "parameters": len(training.parameters["student"])})
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    device.fast_dtype = lambda _: torch.float32
    main()
