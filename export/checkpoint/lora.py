"""Merge LoRA files at export. Changed weights go into a patch file; the checkpoint's own weights stay unchanged.

W' = W + scale alpha / rank B A (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1), in
float32, one weight at a time. Files use the names of diffusers and peft: COMPONENT.MODULE.lora_A.weight, or
lora.down.weight in older files, with MODULE.alpha or diffusers' metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError
from . import convert, headers
from .headers import Tensor

PATCH = "lora.safetensors"  # in the component's folder
PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight"))
METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Lora:
    """A LoRA file and the scale at which it is merged."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class _Change:
    down: Tensor
    up: Tensor
    factor: float
    path: Path


def merge(
    loras: Sequence[Lora], parts: Mapping[str, Mapping[str, Tensor]], kinds: Mapping[str, str], bundle: Path
) -> dict[str, str]:
    """Write a patch file for each component that the files change; return them by folder, relative to `bundle`.

    `parts` are the bundle's tensors by folder, `kinds` the precision of each folder. Raises CheckpointError for a file
    that is not a LoRA of these components, for shapes that do not fit, and for layers that are not linear.
    """
    changes: dict[str, dict[str, list[_Change]]] = {}
    for lora in loras:
        for (folder, name), change in _read(lora, parts).items():
            changes.setdefault(folder, {}).setdefault(name, []).append(change)
    written = {}
    for folder, of in changes.items():
        dtype = convert.DTYPES[kinds[folder]]
        file = f"{folder}/{PATCH}"
        tensors = [parts[folder][name] for name in of]
        size = headers.ITEM_BYTES[dtype]
        head = headers.encode([(t.name, dtype, t.shape, size * math.prod(t.shape)) for t in tensors])
        with (bundle / file).open("xb") as out:
            out.write(head)
            for tensor in tensors:
                merged = _merged(bundle, tensor, of[tensor.name])
                if not np.isfinite(merged).all() or np.abs(merged).max() > convert.MAXIMA[dtype]:
                    raise CheckpointError(
                        f"{of[tensor.name][0].path} makes {tensor.name!r} larger than {kinds[folder]} can hold. "
                        "Lower its scale, or export with --precision fp32."
                    )
                out.write(convert.pack(merged, dtype))
        written[folder] = file
    return written


def _merged(bundle: Path, tensor: Tensor, changes: Sequence[_Change]) -> np.ndarray:
    weight = convert.read_tensor(bundle / tensor.file, tensor)
    for change in changes:
        down, up = (convert.read_tensor(change.path, t) for t in (change.down, change.up))
        weight = weight + np.float32(change.factor) * (up @ down)
    return weight


def _read(lora: Lora, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[tuple[str, str], _Change]:
    """Return the changes of a file, by the component's folder and the weight's name."""
    table = headers.read(lora.path, lora.path.name)
    alphas = _metadata(lora.path)
    found: dict[tuple[str, str], _Change] = {}
    used: set[str] = set()
    for name, down in table.items():
        pair = next((p for p in PAIRS if name.endswith(p[0])), None)
        if pair is None:
            continue
        stem = name.removesuffix(pair[0])
        folder, _, module = stem.partition(".")
        target = _weight(parts.get(folder, {}), module)
        up = table.get(stem + pair[1])
        if target is None or up is None:
            raise CheckpointError(
                f"{lora.path} changes {stem!r}, which {'has no second half' if target else 'the checkpoint lacks'}. "
                "Choose a LoRA file of this model, in diffusers' format."
            )
        if len(target.shape) != 2 or (up.shape[:1], down.shape[1:]) != (target.shape[:1], target.shape[1:]) or (
            up.shape[1:] != down.shape[:1]
        ):  # fmt: skip
            raise CheckpointError(
                f"{lora.path} has {list(up.shape)} by {list(down.shape)} for {stem!r}, a weight of "
                f"{list(target.shape)}; only linear layers can be merged. Choose a LoRA file of this model."
            )
        rank = down.shape[0]
        alpha = alphas.get(folder, float(rank))
        if f"{stem}.alpha" in table:
            alpha = float(convert.read_tensor(lora.path, table[f"{stem}.alpha"]).reshape(-1)[0])
            used.add(f"{stem}.alpha")
        used |= {name, up.name}
        found[folder, target.name] = _Change(down, up, lora.scale * alpha / rank, lora.path)
    unused = table.keys() - used
    if unused or not found:
        raise CheckpointError(
            f"{lora.path} holds {min(unused) if unused else 'nothing'!r}, which is not part of a LoRA in "
            "diffusers' format. Convert it with diffusers: load_lora_weights, then save_lora_weights."
        )
    return found


def _weight(tensors: Mapping[str, Tensor], module: str) -> Tensor | None:
    """Return a module's weight. Checkpoints of transformers 4 have a prefix in CLIP's text model, those of 5 do not."""
    bare = module.removeprefix("text_model.")
    names = (f"{module}.weight", f"{bare}.weight", f"text_model.{bare}.weight")
    return next((tensors[name] for name in names if name in tensors), None)


def _metadata(path: Path) -> dict[str, float]:
    """Return the alpha that diffusers wrote for each component, if it holds for all layers."""
    with headers.reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
    try:
        metadata: dict[str, Any] = json.loads((table.get("__metadata__") or {}).get(METADATA, "{}"))
        if any(metadata.get(key) for key in metadata if key.endswith((".alpha_pattern", ".rank_pattern"))):
            raise ValueError("some layers have their own pattern")
        if any(metadata.get(key) for key in metadata if key.endswith((".use_dora", ".use_rslora"))):
            raise ValueError("it is a DoRA or a rank-stabilised LoRA")
        return {key.removesuffix(".lora_alpha"): float(v) for key, v in metadata.items() if key.endswith(".lora_alpha")}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the metadata of {path} is not supported: {error}. Fuse it with diffusers and export the result."
        ) from None
