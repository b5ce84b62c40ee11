"""A distillation from its recipe: processes, networks, conditions, sample grids and the student's checkpoint."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtime.sampler import custom_schedule
from ..loop import LoopSpec, Reporter, run
from ..state import is_first
from .conditions import Conditions
from .distil import CdmSpec, Distillation, Place, spec_of
from .families import Condition, find_family
from .losses import move
from .networks import FullNetworks, LoraNetworks, Networks, load_teacher

SIGMAS = (1.0, 0.75, 0.5, 0.25)  # raw levels of the four calls of a picture
GRID = 24


class CdmRun(Distillation):
    """A distillation that shows what its student draws in four calls, and writes it as a checkpoint."""

    after: tuple[str, ...] = ()

    def grid(self) -> Tensor | None:
        """Return pictures of the first prompts, four calls each, where the teacher has an autoencoder."""
        texts = self.conditions.take(range(min(GRID, len(self.conditions))))
        generator = torch.Generator().manual_seed(self.loop.seed)
        noise = torch.randn(len(next(iter(texts.values()))), *self.shape, generator=generator)
        latents = sample(self, "student", noise.to(self.device), texts, SIGMAS)
        if not (Path(self.spec.teacher) / "vae").is_dir() or latents.ndim != 4:
            return None
        pictures = decode(Path(self.spec.teacher), latents)
        rows = [torch.cat(list(part), -1) for part in pictures.split(8) if len(part) == min(8, len(pictures))]
        return (torch.cat(rows, -2) / 2 + 0.5).clamp(0, 1)

    def finish(self, out: Path) -> None:
        """Write `out/checkpoint/`: the teacher's checkpoint with the student as its transformer."""
        write_student(self.networks, Path(self.spec.teacher), self.spec, out / "checkpoint")


def distil(recipe: dict[str, Any], loop: LoopSpec, out: Path, report: Reporter) -> None:
    """Run the recipe's [cdm] table; every process that torchrun started calls it."""
    from accelerate import PartialState

    spec = spec_of(recipe["cdm"])
    state = PartialState()
    place = Place(state.process_index, state.num_processes)
    family = find_family(spec.family)
    teacher = load_teacher(Path(spec.teacher), family)
    shape = family.shape(teacher.config, *spec.size)
    networks: Networks
    torch.manual_seed(loop.seed)  # adapters begin at random
    if spec.rank:
        networks = LoraNetworks(teacher.to(state.device), family, spec.checkpointing, spec.rank, spec.alpha)
    else:
        networks = FullNetworks(teacher.to(state.device), family, spec.checkpointing)
    if spec.shard:
        from torch.distributed.device_mesh import init_device_mesh

        networks.shard(init_device_mesh(state.device.type, (place.world,)))
    conditions = Conditions(Path(spec.conditions))
    run(CdmRun(networks, conditions, shape, spec, loop, state.device, place), loop, recipe, out, report)


@torch.no_grad()
def sample(
    training: Distillation, role: str, noise: Tensor, texts: Condition, sigmas: Sequence[float], batch: int = 32
) -> Tensor:
    """Return latents drawn from `noise` (N, …) by Euler steps on the runtime's levels, without guidance."""
    schedule = custom_schedule(sigmas, training.spec.schedule.shift, 1000)
    levels = torch.from_numpy(schedule.sigmas).to(noise.device)
    made = []
    for start in range(0, len(noise), batch):
        latents = noise[start : start + batch]
        text = {name: t[start : start + batch].to(noise.device) for name, t in texts.items()}
        for now, then in itertools.pairwise(levels):
            level, target = now.expand(len(latents)), then.expand(len(latents))
            latents = move(latents, training.networks.velocity(role, latents, level, text), level, target)
        made.append(latents)
    return torch.cat(made)


@torch.no_grad()
def decode(checkpoint: Path, latents: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) in [-1, 1] of 2-D latents, by the checkpoint's autoencoder."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32).to(latents.device)
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample


def write_student(networks: Networks, teacher: Path, spec: CdmSpec, out: Path) -> None:
    """Write the teacher's checkpoint with the student in its place, weights in fp16, whole or not at all.

    Every process calls it; the first one writes.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    student = networks.transformer()
    weights = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not is_first():
        return
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    kept = shutil.ignore_patterns("transformer", "*.onnx", "bundle.json", "tokenizer.json")
    shutil.copytree(teacher, temporary, ignore=kept)
    copy = type(student).from_config(student.config)
    copy.load_state_dict(weights)
    copy.half().save_pretrained(temporary / "transformer")
    settings = json.loads((teacher / "segue.json").read_text()) if (teacher / "segue.json").is_file() else {}
    settings |= {"steps": len(SIGMAS), "guidance": 1.0, "sigmas": list(SIGMAS)}
    (temporary / "segue.json").write_text(json.dumps(settings, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
