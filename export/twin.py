"""A component of a bundle once more in float32, for what ONNX Runtime's CPU cannot do in its own precision."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import CheckpointError
from ..runtime import manifest
from . import checkpoint, headers, precision, trace
from .families.family import find
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
    _write(graph, bundle, scratch)
    return scratch / graph.folder / graph.file


def write_bundle(bundle: Path, content: manifest.Manifest, out: Path) -> Path:
    """Write the bundle directory `bundle`, of manifest `content`, again in float32 to the new directory `out`.

    Returns `out`. It has the bundle's own weights, widened, with what LoRA files changed, and what rendering on a
    processor takes, so no Euler steps.
    Raises CheckpointError where the bundle holds no weights that its models' classes accept.
    """
    out.mkdir()
    family = find(checkpoint.read_index(bundle).get("_class_name"))
    folders = {component.graph.partition("/")[0] for component in content.components.values()}
    configs = {folder: checkpoint.read_json(bundle / folder / "config.json", bundle) for folder in folders}
    files = [tokenizer.file for tokenizer in content.tokenizers.values()]
    for file in files:
        (out / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle / file, out / file)
    components = {}
    for graph in family.graphs(configs):
        if graph.component not in content.components or not graph.weighted:
            continue
        before = content.components[graph.component]
        written = _write(graph, bundle, out)
        files += [before.graph, *written.files]
        components[graph.component] = dataclasses.replace(
            before, weights=written.files, precision="fp32", inputs=widened(before.inputs),
            outputs=widened(before.outputs), parts=(),
        )  # fmt: skip
    held = {f: manifest.File(precision.digest(out / f), (out / f).stat().st_size, False) for f in sorted(set(files))}
    made = dataclasses.replace(
        content, components=components, files=held, parity=(), fidelity=None, islands={}, engines={}
    )
    (out / manifest.FILE_NAME).write_bytes(manifest.dump(made))
    return out


def widened(ports: tuple[manifest.TensorSpec, ...]) -> tuple[manifest.TensorSpec, ...]:
    """Return ports that take and give float32 in place of narrower floats."""
    return tuple(dataclasses.replace(p, dtype="float32" if p.dtype.startswith("float") else p.dtype) for p in ports)


def _write(graph: Graph, bundle: Path, scratch: Path) -> trace.Written:
    (scratch / graph.folder).mkdir(exist_ok=True)
    tensors: dict[str, headers.Tensor] = {}
    files: tuple[str, ...] = checkpoint.read_part(bundle, graph.folder).weights if graph.weighted else ()
    patch = f"{graph.folder}/{PATCH}"
    for file in (*files, *([patch] if graph.weighted and (bundle / patch).is_file() else [])):
        if not (scratch / file).exists():  # another graph of the folder may have been here
            precision.convert(bundle / file, scratch / file, "fp32")
        tensors.update(headers.read(scratch / file, file))
    return trace.write(graph, "fp32", tensors, scratch / graph.folder / graph.file)
