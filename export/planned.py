"""Make a manifest from configs only, without weights, graphs or tokenizers: `segue plan` works before a download.

Graphs are traced without weights, as in an export, measured and deleted. The manifest keeps their costs, the bytes of
their weights and their parts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..runtime.bundle import manifest
from .checkpoint.defaults import find_defaults
from .checkpoint.headers import Tensor
from .checkpoint.read import Checkpoint, Part, Settings
from .families.graph import Graph
from .families.registry import find
from .families.step_inputs import inputs_for
from .graphs import trace
from .graphs.attach import STORED
from .graphs.cost_model import cost_model
from .graphs.cut import parts_of

NONE = "0" * 64  # stands for the sha256 of a file that does not exist
A_TOKEN = 45  # bytes of tokenizer.json for each token, as in CLIP's
WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2}


def planned(
    name: str, index: dict[str, Any], configs: Mapping[str, dict[str, Any]], scheduler: dict[str, Any],
    settings: Settings, kind: str, part_bytes: int, progress: Callable[[str], None] = lambda component: None,
    known: manifest.Manifest | None = None,
) -> manifest.Manifest:  # fmt: skip
    """Return the manifest in `kind` of a checkpoint with these configs, by folder. Its files are placeholders.

    `index` is its model_index.json. `known` holds components of equal configs, which are not traced again. Raises
    CheckpointError as export does for configs that do not fit together.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return planned_at(Path(scratch), name, index, configs, scheduler, settings, kind, part_bytes, progress, known)


def planned_at(
    root: Path, name: str, index: dict[str, Any], configs: Mapping[str, dict[str, Any]], scheduler: dict[str, Any],
    settings: Settings, kind: str, part_bytes: int, progress: Callable[[str], None] = lambda component: None,
    known: manifest.Manifest | None = None,
) -> manifest.Manifest:  # fmt: skip
    """Do what `planned` does, and keep the graphs below `root`.

    Each graph points into a missing weight file beside it, COMPONENT.safetensors: 8 bytes, then the weights, tensor by
    tensor.
    """
    family = find(index)
    family.check(index)
    files: dict[str, manifest.File] = {}
    (root / "scheduler").mkdir(parents=True)
    (root / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    parts = {folder: Part(folder, config, (), {}) for folder, config in configs.items()}
    found = Checkpoint(root, index, parts, settings, ())
    found = dataclasses.replace(found, settings=find_defaults(found, family.row, (), None, {}).settings)
    settings = found.settings
    facts, tokenizers = family.facts(found), {}
    encoders = {folder: encoder for encoder, folder in family.row.tokenizers.items()}
    for folder in filter(found.has, family.tokenizers):
        file = f"{folder}/tokenizer.json"
        text = configs[encoders[folder]]
        files[file] = manifest.File(NONE, A_TOKEN * text.get("text_config", text)["vocab_size"], True)
        # CLIP's tokenizers cut a prompt to the encoder's number of positions
        length = family.tokens_of(settings, folder)
        length = text["max_position_embeddings"] if length is None else length
        tokenizers[folder] = manifest.Tokenizer(file, length, 0, family.template)
    content = manifest.Manifest(
        schema=manifest.SCHEMA, name=name, family=family.name, components={}, tokenizers=tokenizers,
        sampler=facts.sampler, latents=facts.latents,
        sizes=dataclasses.replace(facts.sizes, trained=settings.trained),
        t5_tokens=settings.t5_tokens if family.row.zero_tokens else 0,
        provenance=manifest.Provenance(settings.source, settings.revision, settings.licence, (), {}),
        files=files, video=facts.video, zero_negative=facts.zero_negative,
    )  # fmt: skip
    traced: list[Graph] = []
    for graph in family.graphs(configs, inputs_for(facts.sampler)):
        progress(graph.component)
        narrow = "fp32" if graph.folder in facts.wide and kind == "fp16" else kind
        equal = [g for g in traced if g.component == g.folder and configs[g.folder] == configs[graph.folder]]
        if known is not None and graph.component in known.components:
            spec = known.components[graph.component]
            content.files.update({file: known.files[file] for file in (*spec.graphs, *spec.weights)})
        elif equal and graph.component == graph.folder:  # the second of two experts
            spec = _moved(content, content.components[equal[0].component], equal[0].folder, graph.folder)
        else:
            spec = _component(root, content, graph, narrow, part_bytes)
        content.components[graph.component] = spec
        traced.append(graph)
    return content


def _moved(content: manifest.Manifest, spec: manifest.Component, old: str, new: str) -> manifest.Component:
    """Return `spec`, a component of the folder `old`, for an equal model in `new`; adds its files to `content`."""

    def path(file: str) -> str:
        return f"{new}/{file.partition('/')[2].replace(f'{old}.', f'{new}.')}"

    for file in (*spec.graphs, *spec.weights):
        content.files[path(file)] = content.files[file]
    parts = tuple(dataclasses.replace(part, graph=path(part.graph)) for part in spec.parts)
    return dataclasses.replace(spec, graph=path(spec.graph), weights=tuple(map(path, spec.weights)), parts=parts)


def _component(root: Path, content: manifest.Manifest, graph: Graph, kind: str, part_bytes: int) -> manifest.Component:
    model = trace.trace(graph, kind)
    weights, offset = {}, 8
    stored_at = f"{graph.folder}/{graph.component}.safetensors"
    for value in model.graph.inputs:
        if (name := value.name or "").startswith(trace.PREFIX):
            shape = tuple(size for size in value.shape or () if isinstance(size, int))
            length = WIDTH[kind] * math.prod(shape)
            stored = STORED[kind]
            weights[name.removeprefix(trace.PREFIX)] = Tensor(name, stored_at, offset, length, stored, shape)
            offset += length
    written = trace.attach(model, weights, graph, kind)
    path = root / graph.folder / graph.file
    path.parent.mkdir(exist_ok=True)
    ir.save(model, path)
    content.files[f"{graph.folder}/{graph.file}"] = manifest.File(NONE, path.stat().st_size, False)
    if weights:
        content.files[stored_at] = manifest.File(NONE, offset, True)
    dtypes = {"weight": trace.NUMPY[kind]}
    inputs, outputs = (
        tuple(manifest.TensorSpec(p.name, dtypes.get(p.dtype, p.dtype), p.shape) for p in ports)
        for ports in (graph.inputs, graph.outputs)
    )
    files = (stored_at,) if weights else ()
    bare = manifest.Component(
        f"{graph.folder}/{graph.file}", files, kind, written.parameters, graph.opset, inputs, outputs
    )
    whole = dataclasses.replace(content, components={graph.component: bare})
    pieces = parts_of(root, whole, graph.component, part_bytes)
    for piece in pieces:
        content.files[piece.graph] = manifest.File(NONE, (root / piece.graph).stat().st_size, False)
    return dataclasses.replace(bare, cost=cost_model(root, whole, graph.component), parts=pieces)
