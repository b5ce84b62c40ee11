"""Run a distillation from its recipe: processes, networks, conditions, sample grids, the student's checkpoint."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import TrainingError
from ...runtime.sampling.schedule import custom_schedule
from ...runtime.storage.directory import NewDirectory
from ..loop.device import check_compiler
from ..loop.networks import pretrained, save_half
from ..loop.recipe_file import fill
from ..loop.run import LoopSpec
from ..loop.state import is_first
from ..pictures.sampling import decode, euler, shift_of, tiled
from . import names
from .data.conditions import open_kinds
from .data.pairs import Pairs, made_for
from .distil import Distillation, Place
from .families import find_family
from .networks import FullNetworks, LoraNetworks, Networks, load_teacher
from .spec import CdmSpec, updates

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

GRID = 24  # pictures


class CdmRun(Distillation):
    """A distillation with sample grids, which writes its student as a checkpoint."""

    after: tuple[str, ...] = ("cdm.revision",)

    def grid(self) -> Tensor | None:
        """Return pictures of the first prompts. None for packed latents and without autoencoder.

        Every process draws, because sharded networks need all processes. Only the first decodes; others return None.
        """
        if not (Path(self.spec.teacher) / "vae").is_dir() or len(self.shape) != 3:
            return None
        schedule = custom_schedule(self.spec.schedule.fixed, self.spec.schedule.shift, 1000)
        generator = torch.Generator().manual_seed(self.loop.seed)
        latents = []
        for index in range(min(GRID, len(self.kinds[0]))):
            text = {name: tensor.to(self.device) for name, tensor in self.kinds[0].take([index]).items()}
            noise = torch.randn(1, *self.shape, generator=generator).to(self.device)
            latents.append(euler(partial(self._student, condition=text), noise, schedule))
        if not is_first():
            return None
        from diffusers import AutoencoderKL

        vae = pretrained(AutoencoderKL, Path(self.spec.teacher) / "vae")
        return tiled(decode(vae.to(self.device), torch.cat(latents), batch=1))

    def finish(self, out: Path) -> None:
        """Write `out/checkpoint/`: the teacher's checkpoint with the student's transformer."""
        write_student(self.networks, Path(self.spec.teacher), self.spec, out / "checkpoint")


def distillation(recipe: dict[str, Any], loop: LoopSpec) -> CdmRun:
    """Return the run of the recipe's [cdm] table. Every process of torchrun calls it."""
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # otherwise it ignores other processes on CPUs
    place = Place(state.process_index, state.num_processes)
    place.samples(loop.batch)
    spec = checked_spec(recipe, place.world)
    family = find_family(spec.family)
    kinds = open_kinds(Path(spec.conditions))
    teacher: Any = load_teacher(Path(spec.teacher), family)
    shape = family.shape(teacher.config, *spec.size)
    networks: Networks
    torch.manual_seed(loop.seed)  # adapters begin with random weights
    if spec.rank:
        networks = LoraNetworks(teacher.to(state.device), family, spec.checkpointing, spec.rank, spec.alpha)
    else:
        begun = load_teacher(Path(spec.start), family, "cdm.start") if spec.start else None
        networks = FullNetworks(
            teacher, family, spec.checkpointing, state.device, _mesh(spec, place, state.device), begun
        )
        if spec.compile:
            check_compiler()
            networks.compile()
    pairs = Pairs(Path(spec.pairs)) if spec.pairs else None
    if pairs and (len(kinds) > 1 or pairs.made_for != made_for(spec.family, kinds[0], shape)):
        raise TrainingError(
            f"[cdm] pairs = {spec.pairs!r} were made for {pairs.made_for}, but this recipe has {len(kinds)} x "
            f"{made_for(spec.family, kinds[0], shape)}. Write them again with segue pairs, or name other pairs."
        )
    return CdmRun(networks, kinds, shape, spec, loop, state.device, place, pairs)


def checked_spec(recipe: dict[str, Any], world: int) -> CdmSpec:
    """Return the recipe's spec. Raises TrainingError if `world` processes cannot run it."""
    spec = fill(CdmSpec, recipe["cdm"], "cdm")
    find_family(spec.family)
    _check_loop(recipe["loop"])
    _check_shift(Path(spec.teacher), spec)
    if bool(spec.pairs) != bool(spec.terms.regression):
        raise TrainingError(
            f"[cdm] pairs = {spec.pairs!r} and [cdm.terms] regression = {spec.terms.regression}: one needs the other. "
            "Write the pairs with segue pairs and name their directory, or remove both."
        )
    steps = recipe["loop"].get("steps", 0)
    if not updates(spec, steps) or (spec.fake_lead and not spec.terms.matches):
        raise TrainingError(
            f"[cdm] fake_lead = {spec.fake_lead} leaves {updates(spec, steps)} updates of the student in {steps} "
            "iterations, or no term uses the fake teacher. Correct fake_lead, loop.steps or the terms."
        )
    if spec.start and spec.rank:
        raise TrainingError("[cdm] has rank and start, but adapters begin on the teacher. Remove one.")
    if spec.shard and world < 2:
        raise TrainingError(
            "[cdm] shard needs several processes, and this is the only one. Remove shard, or start torchrun "
            "--nproc-per-node N -m segue.cli train RECIPE (for a dry run: --processes N)."
        )
    return spec


def _check_loop(table: dict[str, Any]) -> None:
    for name, instead in (("optimiser", "AdamW trains both networks"), ("ema", "cdm.decay sets the student's average")):
        if name in table:
            raise TrainingError(f"[loop] {name} has no effect in a distillation: {instead}. Remove it.")


def _check_shift(teacher: Path, spec: CdmSpec) -> None:
    shift = shift_of(teacher)
    if shift not in (None, spec.schedule.shift):
        raise TrainingError(
            f"[cdm.schedule] shift = {spec.schedule.shift:g}, but the scheduler of {teacher} has {shift:g} and will "
            f"sample the student. Write shift = {shift:g}."
        )


def _mesh(spec: CdmSpec, place: Place, device: torch.device) -> DeviceMesh | None:
    if not spec.shard:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (place.world,))


def write_student(networks: Networks, teacher: Path, spec: CdmSpec, out: Path) -> None:
    """Write the teacher's checkpoint with the student's transformer in fp16, as a whole or not at all.

    Every process calls it. The first one writes.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    student = networks.transformer()
    weights = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not is_first():
        return
    made_by_export = ("bundle.json", "*.onnx", "tokenizer.json", "buffers.safetensors")
    left = made_by_export if (teacher / "bundle.json").is_file() else ()
    family = find_family(spec.family)
    copy, part = family.network_class().from_config(student.config), family.part
    copy.load_state_dict(weights)
    settings = json.loads((teacher / "segue.json").read_text()) if (teacher / "segue.json").is_file() else {}
    levels = spec.schedule.fixed
    sampled = {"steps": len(levels), "guidance": 1.0, "sigmas": list(levels)}
    if spec.family == names.MOTION:
        settings["video"] = settings.get("video", {}) | {f"motion_{name}": value for name, value in sampled.items()}
    else:
        settings |= sampled
    settings["revision"] = spec.revision
    settings["source"] = f"segue: CDM student of {settings.get('source', teacher.name)}"
    with NewDirectory(out, replace=True) as new:
        ignore = shutil.ignore_patterns(part, *left)
        shutil.copytree(teacher, new.path, ignore=ignore, dirs_exist_ok=True)
        save_half(copy, new.path / part)
        (new.path / "segue.json").write_text(json.dumps(settings, indent=2) + "\n")
        new.commit()
