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
from ...runtime.lora.inputs import plain
from ..checkpoint import convert, headers, read
from ..checkpoint.lora.merge import PATCH, Lora, merge
from ..checkpoint.single.open import folders_of, plain_folder, write_ranges
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


def write_twin(graph: Graph, bundle: Path, scratch: Path, single: str = "") -> Path:
    """Export the component again in float32 under `scratch`, weights included, and return its graph."""
    (scratch / graph.folder).mkdir(exist_ok=True)
    path = scratch / graph.folder / graph.file
    trace.write(graph, "fp32", _widen(bundle, graph.folder, scratch, single) if graph.weighted else {}, path)
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
    family = find(read.read_index(bundle))
    single = content.provenance.single_file
    folders = folders_in(bundle, content)
    configs = {folder: read.read_json(bundle / folder / "config.json", bundle) for folder in folders}
    files = [tokenizer.file for tokenizer in content.tokenizers.values()]
    for file in files:
        (out / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle / file, out / file)
    tensors = {folder: _widen(weights or bundle, folder, out, single, weights is None) for folder in folders}
    for folder, file in merge(loras if weights else (), tensors, dict.fromkeys(folders, "fp32"), out).items():
        tensors[folder] |= headers.read(out / file, file)
    components = {}
    for graph in family.graphs(configs):
        if graph.component not in content.components or not graph.weighted:
            continue
        before = content.components[graph.component]
        at_root = "/" not in before.graph
        written = trace.write(graph, "fp32", tensors[graph.folder], out / before.graph, at_root)
        files += [before.graph, *written.files]
        components[graph.component] = dataclasses.replace(
            before, weights=written.files, precision="fp32", inputs=widened(plain(before.inputs)),
            outputs=widened(before.outputs), parts=(),
        )  # fmt: skip
    held = {f: manifest.File(convert.digest(out / f), (out / f).stat().st_size, False) for f in sorted(set(files))}
    made = dataclasses.replace(
        content,
        components=components,
        files=held,
        parity=(),
        fidelity=None,
        islands={},
        engines={},
        prompts="",
        provenance=dataclasses.replace(content.provenance, single_file=""),
    )
    (out / manifest.FILE_NAME).write_bytes(bundle_json.dump(made))
    return out


def folders_in(bundle: Path, content: manifest.Manifest) -> set[str]:
    """Return the folders of a bundle's components. Graphs at its root read from the single file beside them."""
    folders = {c.graph.partition("/")[0] for c in content.components.values() if "/" in c.graph}
    at_root = any("/" not in component.graph for component in content.components.values())
    inside = folders_of(bundle, content.provenance.single_file) if at_root else {}
    return folders | {folder for folder in inside if (bundle / folder / "config.json").is_file()}


def widened(ports: tuple[manifest.TensorSpec, ...]) -> tuple[manifest.TensorSpec, ...]:
    """Return the ports with float32 in place of narrower floats."""
    return tuple(dataclasses.replace(p, dtype="float32" if p.dtype.startswith("float") else p.dtype) for p in ports)


def _widen(source: Path, folder: str, out: Path, single: str = "", patched: bool = True) -> dict[str, headers.Tensor]:
    """Write the weights of a folder under `out` in float32, and return them; `patched` adds the LoRA patch.

    What a single file holds is taken from a bundle by its byte ranges, and from a checkpoint as diffusers converts it.
    """
    (out / folder).mkdir(exist_ok=True)
    tensors: dict[str, headers.Tensor] = {}
    if patched and folder in folders_of(source, single):
        file = f"{folder}/{read.STEMS[1]}.safetensors"
        write_ranges(source, single, folder, out / file)
        tensors = headers.read(out / file, file)
    else:
        with plain_folder(source, single, folder) as plain:
            for file in read.read_part(plain.parent, folder).weights:
                convert.convert(plain.parent / file, out / file, "fp32")
                tensors.update(headers.read(out / file, file))
    patch = f"{folder}/{PATCH}"
    if patched and (source / patch).is_file():
        convert.convert(source / patch, out / patch, "fp32")
        tensors.update(headers.read(out / patch, patch))
    return tensors
