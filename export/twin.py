"""A component of a bundle once more in float32, for what ONNX Runtime's CPU cannot do in its own precision."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import CheckpointError
from . import checkpoint, headers, precision, trace
from .families.graph import Graph
from .lora import PATCH


def apply_patch(model: torch.nn.Module, graph: Graph, folder: Path) -> None:
    """Put the weights that LoRA files changed, where a bundle's folder has some, into the model that PyTorch loaded."""
    if graph.weighted and (folder / PATCH).is_file():
        known = model.state_dict().keys()
        named = {name: name for name in known} | {graph.alias(name): name for name in known}
        changed = load_file(folder / PATCH)
        absent = changed.keys() - named.keys()
        if absent:
            raise CheckpointError(f"{folder / PATCH} holds {min(absent)!r}, which the model lacks. Export it again.")
        model.load_state_dict({named[name]: value for name, value in changed.items()}, strict=False)


def write_twin(graph: Graph, bundle: Path, scratch: Path) -> Path:
    """Export the component again in float32 under `scratch`, weights included, and return its graph."""
    (scratch / graph.folder).mkdir(exist_ok=True)
    tensors: dict[str, headers.Tensor] = {}
    files: tuple[str, ...] = checkpoint.read_part(bundle, graph.folder).weights if graph.weighted else ()
    patch = f"{graph.folder}/{PATCH}"
    for file in (*files, *([patch] if graph.weighted and (bundle / patch).is_file() else [])):
        precision.convert(bundle / file, scratch / file, "fp32")
        tensors.update(headers.read(scratch / file, file))
    path = scratch / graph.folder / graph.file
    trace.write(graph, "fp32", tensors, path)
    return path
