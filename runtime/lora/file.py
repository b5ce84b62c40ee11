"""Read a LoRA file: its modules, the parts of each change, and alpha. Only the header is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..storage.safetensors import Tensor, metadata, read, read_tensor
from .names import split

METADATA = "lora_adapter_metadata"  # diffusers' key
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
MAX_CONFIG = 2**20
ADVICE = "Choose a LoRA file of this model."


@dataclass(frozen=True)
class Adapter:
    """What peft's config says where a file has no alpha of its own."""

    alpha: float | None = None
    pattern: Mapping[str, float] | None = None
    rooted: bool = False
    dora: bool = False

    def of(self, stem: str) -> float | None:
        """Return the alpha of a module."""
        keys = [key for key in self.pattern or {} if f".{stem}".endswith(f".{key}")]
        return (self.pattern or {})[max(keys, key=len)] if keys else self.alpha


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file: the parts of the change of each module, by the file's name for it (`names.SUFFIXES`)."""

    path: Path
    modules: Mapping[str, Mapping[str, Tensor]]
    adapters: Mapping[str, Adapter]

    def scale(self, stem: str, folder: str, rank: int) -> float:
        """Return alpha / rank of a module, which lies in `folder`; 1 if no alpha is stated, 0 for rank 0."""
        if rank == 0:
            return 0.0
        tensor = self.modules[stem].get("alpha")
        if tensor is not None:
            if math.prod(tensor.shape) != 1:
                raise CheckpointError(
                    f"{self.path} holds {tensor.name!r} of shape {list(tensor.shape)}, where one number is expected. "
                    "Fetch the file again."
                )
            return float(read_tensor(self.path, tensor).reshape(-1)[0]) / rank
        said = (self.adapters.get(name) for name in (folder, stem.partition(".")[0], ""))
        adapter = next((config for config in said if config), Adapter())
        alpha = adapter.of(stem)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if adapter.rooted else rank)


def read_lora(path: Path) -> LoraFile:
    """Return the modules of the LoRA file at `path`.

    Raises CheckpointError, with the key, for a file that is damaged or holds a key of no known form.
    """
    table = read(path, path.name)
    adapters = _adapters(path)
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in table.items():
        stem, part = split(key)
        if not part:
            raise CheckpointError(
                f"{path} holds {key!r}, which is not part of a LoRA that Segue knows. Convert the file with diffusers: "
                "load_lora_weights, then save_lora_weights."
            )
        if modules.setdefault(stem, {}).setdefault(part, tensor) is not tensor:
            raise CheckpointError(f"{path} holds {key!r} under two names. Fetch the file again.")
    if not modules:
        raise CheckpointError(f"{path} holds nothing. {ADVICE}")
    if any(adapter.dora for adapter in adapters.values()) and not any("vector" in held for held in modules.values()):
        raise CheckpointError(f"{path} is a DoRA by its metadata, but holds no magnitude. Fetch the file again.")
    return LoraFile(path, modules, adapters)


def _adapters(path: Path) -> dict[str, Adapter]:
    """Return what the file's metadata says of each folder, or peft's config beside it says of all ("")."""
    beside = path.with_name(CONFIG)
    try:
        said: dict[str, Any] = json.loads(metadata(path).get(METADATA, "{}"))
        configs: dict[str, dict[str, Any]] = {}
        for key, value in said.items():
            folder, _, field = key.rpartition(".")
            configs.setdefault(folder, {})[field] = value
        found = {folder: _adapter(config) for folder, config in configs.items()}
        if not found and path.name == ADAPTER and beside.is_file():
            if beside.stat().st_size > MAX_CONFIG:
                raise ValueError(f"{CONFIG} has more than {MAX_CONFIG} bytes")
            found = {"": _adapter(json.loads(beside.read_bytes()))}
        return found
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata of {path} is not supported: {error}. Fuse it with diffusers and export the result."
        ) from None


def _adapter(config: Mapping[str, Any]) -> Adapter:
    pattern = config.get("alpha_pattern") or {}
    if any(set(key) & set("^$*+?[](){}|\\") for key in pattern):
        raise ValueError("alpha_pattern names layers by a regular expression")
    if config.get("fan_in_fan_out"):
        raise ValueError("its matrices are transposed (fan_in_fan_out)")
    alpha = config.get("lora_alpha")
    return Adapter(
        None if alpha is None else float(alpha), {str(k): float(v) for k, v in pattern.items()},
        bool(config.get("use_rslora")), bool(config.get("use_dora")),
    )  # fmt: skip
