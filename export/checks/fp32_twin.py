"""Write a bundle, or one of its components, again in float32: to compare with, and because CPUs do not run bf16."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...errors import CheckpointError
from ...runtime.bundle import bundle_json, manifest
from ..checkpoint import convert, headers, read
from ..checkpoint.lora import PATCH, Lora, merge
from ..families.graph import Graph
from ..families.registry import find
from ..graphs import trace


def apply_patch(model: torch.nn.Module, graph: Graph, folder: Path) -> None:
    """Load the weights that LoRA files changed, if the folder has any, into the model that PyTorch loaded."""
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
    path = scratch / graph.folder / graph.file
    trace.write(graph, "fp32", _widen(bundle, graph.folder, scratch) if graph.weighted else {}, path)
    return path


def write_bundle(
    bundle: Path, content: manifest.Manifest, out: Path, weights: Path | None = None, loras: Sequence[Lora] = ()
) -> Path:
    """Write the bundle directory `bundle`, of manifest `content`, again in float32 to the new directory `out`.

    Returns `out`. Its weights come from the checkpoint `weights`, with `loras` merged, or else from the bundle with its
    LoRA patches; narrower weights are widened. It has no graphs of Euler steps, because a processor needs none. Raises
    CheckpointError if the models' classes do not accept the weights.
    """
    out.mkdir()
    family = find(read.read_index(bundle).get("_class_name"))
    folders = {component.graph.partition("/")[0] for component in content.components.values()}
    configs = {folder: read.read_json(bundle / folder / "config.json", bundle) for folder in folders}
    files = [tokenizer.file for tokenizer in content.tokenizers.values()]
    for file in files:
        (out / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle / file, out / file)
    tensors = {folder: _widen(weights or bundle, folder, out, weights is None) for folder in folders}
    for folder, file in merge(loras if weights else (), tensors, dict.fromkeys(folders, "fp32"), out).items():
        tensors[folder] |= headers.read(out / file, file)
    components = {}
    for graph in family.graphs(configs):
        if graph.component not in content.components or not graph.weighted:
            continue
        before = content.components[graph.component]
        written = trace.write(graph, "fp32", tensors[graph.folder], out / before.graph)
        files += [before.graph, *written.files]
        components[graph.component] = dataclasses.replace(
            before, weights=written.files, precision="fp32", inputs=widened(before.inputs),
            outputs=widened(before.outputs), parts=(),
        )  # fmt: skip
    held = {f: manifest.File(convert.digest(out / f), (out / f).stat().st_size, False) for f in sorted(set(files))}
    made = dataclasses.replace(
        content, components=components, files=held, parity=(), fidelity=None, islands={}, engines={}, prompts=""
    )
    (out / manifest.FILE_NAME).write_bytes(bundle_json.dump(made))
    return out


def widened(ports: tuple[manifest.TensorSpec, ...]) -> tuple[manifest.TensorSpec, ...]:
    """Return the ports with float32 in place of narrower floats."""
    return tuple(dataclasses.replace(p, dtype="float32" if p.dtype.startswith("float") else p.dtype) for p in ports)


def _widen(source: Path, folder: str, out: Path, patched: bool = True) -> dict[str, headers.Tensor]:
    """Write the weights of a folder under `out` in float32, and return them; `patched` adds the LoRA patch."""
    (out / folder).mkdir(exist_ok=True)
    tensors: dict[str, headers.Tensor] = {}
    patch = f"{folder}/{PATCH}"
    for file in (
        *read.read_part(source, folder).weights, *([patch] if patched and (source / patch).is_file() else [])
    ):  # fmt: skip
        convert.convert(source / file, out / file, "fp32")
        tensors.update(headers.read(out / file, file))
    return tensors
