"""The networks of CDM (student, real teacher, fake teacher), as three copies or as adapters on one base."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import TrainingError
from ..loop.device import mixed_precision
from ..loop.networks import pretrained
from .families import Condition, Family

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

TRAINED = ("student", "fake")


class FullNetworks:
    """Three copies of the teacher. Student and fake teacher train, in float32. The real teacher is frozen."""

    def __init__(
        self, teacher: Any, family: Family, checkpointing: bool, device: torch.device,
        mesh: DeviceMesh | None = None, start: Any = None,
    ) -> None:  # fmt: skip
        """Put the networks on `device`, or shard each over the processes of `mesh`, block by block (FSDP2).

        The student begins as `start` if given, else as the teacher.
        """
        self.family, self.config = family, teacher.config
        if start is not None and _shapes(start) != _shapes(teacher):
            raise TrainingError(
                "cdm.start has another size than cdm.teacher. Name a checkpoint trained from that teacher."
            )
        self.trained: dict[str, nn.Module] = {}
        for role in TRAINED:
            network = copy.deepcopy(start if role == "student" and start is not None else teacher).requires_grad_(True)
            if checkpointing:
                network.enable_gradient_checkpointing()
            self.trained[role] = _placed(network, family, device, mesh)
        self.real: nn.Module = _placed(teacher.eval().requires_grad_(False), family, device, mesh)

    def compile(self, backend: str = "inductor") -> None:
        """Compile every network in place with a backend of torch.compile. Parameters keep their names."""
        torch._dynamo.config.recompile_limit = 32  # for each network; more sizes would run uncompiled
        for network in (*self.trained.values(), self.real):
            network.compile(backend=backend, dynamic=False)  # a run has few batch sizes, see `rows_at`

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of "student" or "fake"; both roles have the same names."""
        return {name: p for name, p in self.trained[role].named_parameters() if p.requires_grad}

    def use(self, role: str) -> None:
        """Prepare a backward pass through calls of `role`. There is nothing to do here."""

    def velocity(self, role: str, latents: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """Return the velocity, float32, of the latents' shape, by the network "student", "fake" or "real"."""
        network = self.real if role == "real" else self.trained[role]
        with mixed_precision(latents.device):
            return self.family.velocity(network, latents, level, condition).float()

    def transformer(self) -> Any:
        """Return the student's transformer."""
        return self.trained["student"]


class LoraNetworks:
    """One frozen base for three networks: the base is the real teacher, an adapter makes each trained role.

    A new adapter of peft is the identity: student and fake teacher begin as the teacher.
    """

    def __init__(self, teacher: Any, family: Family, checkpointing: bool, rank: int, alpha: int) -> None:
        from peft import LoraConfig

        self.family, self.config = family, teacher.config
        self.base: Any = teacher.eval().requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(family.adapted))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # the name means the second one
            for role in TRAINED:
                self.base.add_adapter(config, adapter_name=role)
        self._adapters = [p for role in TRAINED for p in self.parameters(role).values()]
        if checkpointing:
            self.base.enable_gradient_checkpointing()

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of "student" or "fake"; both roles have the same names."""
        mark = f".{role}."
        return {name.replace(mark, "."): p for name, p in self.base.named_parameters() if mark in name}

    def use(self, role: str) -> None:
        """Make `role` the active network, for a call or for a backward pass that recomputes activations."""
        if role == "real":
            self.base.disable_adapters()
        else:
            self.base.enable_adapters()
            self.base.set_adapter(role)
        for p in self._adapters:
            # peft freezes inactive adapters, but a backward pass may still need them.
            p.requires_grad_(True)

    def velocity(self, role: str, latents: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """Return the velocity, float32, of the latents' shape, by the network "student", "fake" or "real"."""
        self.use(role)
        with mixed_precision(latents.device):
            return self.family.velocity(self.base, latents, level, condition).float()

    def transformer(self) -> Any:
        """Return a copy of the transformer with the student's adapter merged into its weights."""
        merged = copy.deepcopy(self.base)
        merged.fuse_lora(adapter_names=["student"])
        merged.unload_lora()
        return merged


Networks = FullNetworks | LoraNetworks


def load_teacher(folder: Path, family: Family, key: str = "cdm.teacher") -> nn.Module:
    """Return the transformer of the checkpoint or bundle `folder`, in float32. Errors name the recipe's `key`.

    Raises TrainingError if there is none, or if a second expert shares the noise levels.
    """
    where = folder / family.part
    if not (where / "config.json").is_file():
        raise TrainingError(
            f"{folder} has no {family.part}/config.json. Name a checkpoint in diffusers format, or a bundle, as {key}."
        )
    if (folder / f"{family.part}_2/config.json").is_file():
        raise TrainingError(
            f"{folder} has two experts, {family.part} and {family.part}_2, but a distillation takes one. Name a "
            f"checkpoint with one expert as {key}."
        )
    try:
        return pretrained(family.network_class(), where)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{where} cannot be loaded: {error}. Fetch its weights as safetensors.") from error


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in network.named_parameters()}


def _placed(network: nn.Module, family: Family, device: torch.device, mesh: DeviceMesh | None) -> nn.Module:
    if mesh is None:
        return network.to(device)
    from torch.distributed.fsdp import fully_shard

    # Sharding moves the network to the device part by part. Weights outside the blocks are freed after each call too.
    # Otherwise a call with the averaged weights would still use the weights gathered before.
    for module in network.modules():
        if type(module).__name__ in family.blocks:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network
