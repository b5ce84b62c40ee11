"""Export a diffusers checkpoint as a bundle, without loading its weights."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, CheckpointError, ParityError, UsageError
from ..runtime.bundle import bundle_json, manifest
from ..runtime.bundle.limits import PART_BYTES, PRECISIONS
from ..runtime.request import check_size
from ..runtime.storage.directory import NewDirectory
from .checkpoint import convert as weights
from .checkpoint import copy, headers, read
from .checkpoint.hub import Origin
from .checkpoint.lora import Lora, merge
from .checkpoint.prompts import list_of_names
from .checks import fidelity
from .checks.footprint import with_footprints
from .families.registry import Family, find
from .graphs.cost_model import cost_model
from .graphs.cut import parts_of

VERSIONS = ("segue", "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Event:
    """A step of the export. `stage` is copy (`done` and `total` in bytes), trace, tokenizer, measure, parity or note.

    `text` is a line for people: the component or file, a parity result, or a remark.
    """

    stage: str
    text: str
    done: int
    total: int


Progress = Callable[[Event], None]
WITHOUT = "Or export without the check: --no-parity."


def export(
    source: Path,
    out: Path,
    *,
    precision: str = "keep",
    parity: bool = True,
    name: str | None = None,
    loras: Sequence[Lora] = (),
    origin: Origin | None = None,
    part_bytes: int = PART_BYTES,
    trained: Sequence[tuple[int, int]] = (),
    progress: Progress = lambda event: None,
) -> manifest.Manifest:
    """Export the diffusers checkpoint directory `source` as the bundle `out`, and return its manifest.

    `precision` keeps the weight files unchanged ("keep"), or converts every floating tensor to fp16, bf16 or fp32.
    `parity` compares each graph with PyTorch, and pictures in fp16 or bf16 with fp32 (docs/guide/export.md). It also
    keeps folders that overflow fp16 in fp32. `name` is the bundle's name, by default the last part of `out`. `loras`
    are merged: the changed weights go into a patch file, and the checkpoint's own weights stay unchanged. `origin` is
    the checkpoint's source on the hub. A graph with more than `part_bytes` of weights is also written in parts, which a
    runtime can load one by one. `trained` holds each (height, width) that the model was trained at; empty: those in the
    checkpoint's segue.json. A prompts.json in the checkpoint becomes the bundle's list of names.

    Memory does not grow with the weights, except in the child process that checks parity. `out` appears whole or not at
    all. Raises CheckpointError, OutputError, ParityError; UsageError for an unknown precision or size.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"Unknown precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")

    if part_bytes < 1:
        raise UsageError(f"part_bytes must be 1 or more, got {part_bytes!r}. Leave it out for the default.")
    index = read.read_index(source)
    family = find(index.get("_class_name"))
    family.check(index)
    found = read.read(source, (*family.folders, *family.optional))
    lacking = [folder for folder in family.folders if folder not in found.parts]
    if lacking:
        raise CheckpointError(
            f"{source} has no {lacking[0]}, which the family {family.name} needs. Fetch the whole checkpoint again."
        )
    kinds = {f: read.precision(p) if precision == "keep" else precision for f, p in found.parts.items()}
    facts = family.facts(found)
    sizes = tuple(check_size(size, facts.sizes) for size in trained)
    wanted = dict.fromkeys(found.parts, precision)
    islands = _islands(found, facts.wide, kinds, precision, parity, progress)
    for folder, why in islands.items():
        wanted[folder] = kinds[folder] = "fp32"
        progress(Event("note", f"{folder} is written in fp32: {why}", 0, 0))
    new = NewDirectory(out)
    draft = manifest.Manifest(
        schema=manifest.SCHEMA,
        name=name or new.target.name,
        family=family.name,
        components={},
        tokenizers={},
        sampler=facts.sampler,
        latents=facts.latents,
        sizes=dataclasses.replace(facts.sizes, trained=sizes or found.settings.trained),
        t5_tokens=found.settings.t5_tokens if family.row.zero_tokens else 0,
        provenance=_provenance(found, origin, loras),
        files={file: manifest.File("", 0, True) for file in found.files},
        video=facts.video,
        zero_negative=facts.zero_negative,
        islands=islands,
        prompts=list_of_names(found),
    )
    _encode(draft, source)  # fails before the work if no reader could open the bundle
    with new:
        files = copy.copy(found, new.path, wanted, lambda file, done, total: progress(Event("copy", file, done, total)))
        tokenizers = _tokenizers(new.path, family, found, files, progress)
        # The files as written, since converting moves every offset.
        tensors = {folder: dict(read.read_part(new.path, folder).tensors) for folder in found.parts}
        for folder, patch in merge(loras, tensors, kinds, new.path).items():
            files[patch] = _added(new.path, patch)
            tensors[folder] |= headers.read(new.path / patch, patch)
        components = _graphs(family, found, new.path, kinds, tensors, files, progress)
        whole = dataclasses.replace(draft, components=components, tokenizers=tokenizers)
        components = {
            name: dataclasses.replace(
                component,
                cost=cost_model(new.path, whole, name),
                parts=parts_of(new.path, whole, name, part_bytes),
            )
            for name, component in components.items()
        }
        files |= {part.graph: _added(new.path, part.graph) for c in components.values() for part in c.parts}
        results: tuple[manifest.Parity, ...] = ()
        if parity:
            progress(Event("measure", "memory", 0, 1))
            counted = dataclasses.replace(whole, components=components)
            components = with_footprints(new.path, counted, lambda text: progress(Event("note", text, 0, 0))).components
            results = _parity(new.path, components, progress)
        files = dict(sorted(files.items()))
        result = dataclasses.replace(draft, components=components, tokenizers=tokenizers, files=files, parity=results)
        (new.path / manifest.FILE_NAME).write_bytes(_encode(result, source))
        if parity:
            progress(Event("measure", "pictures", 0, 1))
            beside = fidelity.beside_full(
                source, new.path, result, loras, note=lambda text: progress(Event("note", text, 0, 0))
            )
            result = dataclasses.replace(result, fidelity=beside)
            (new.path / manifest.FILE_NAME).write_bytes(_encode(result, source))
        new.commit()
    return result


def _islands(
    found: read.Checkpoint, known: Sequence[str], kinds: Mapping[str, str], precision: str, checked: bool,
    progress: Progress,
) -> dict[str, str]:  # fmt: skip
    """Return the folders that stay in fp32 in an fp16 export, each with the reason."""
    islands = {
        folder: "its activations overflow fp16, and diffusers widens it as well"
        for folder in known
        if kinds[folder] == "fp16"
    }
    narrowed = {
        folder: sum(math.prod(tensor.shape) for tensor in part.tensors.values())
        for folder, part in found.parts.items()
        if precision == "fp16" and folder not in islands and read.precision(part) != "fp16"
    }
    if not checked or not narrowed:
        return islands
    from .checks.fp16_overflow import overflowing

    try:
        overflow, left = overflowing(found.root, narrowed)
    except ParityError as error:
        raise ParityError(f"No bundle was made: the check for fp16 overflow failed. {error} {WITHOUT}") from None
    for folder in sorted(left):
        progress(Event("note", f"{folder}: not enough memory to check for fp16 overflow", 0, 0))
    return islands | overflow


def _encode(content: manifest.Manifest, source: Path) -> bytes:
    """Return bundle.json's bytes; raises CheckpointError if a reader would refuse them."""
    try:
        data = bundle_json.dump(content)
        bundle_json.parse(data, manifest.FILE_NAME)
        if len(data) > manifest.MAX_BYTES:
            raise ValueError(f"it has {len(data)} bytes, above the limit of {manifest.MAX_BYTES}")
    except (BundleError, ValueError) as error:
        what = error.what.rstrip(".") if isinstance(error, BundleError) else str(error)
        raise CheckpointError(
            f"A bundle of {source} could not be opened: {what}. Correct that in the checkpoint's segue.json, "
            "config.json or scheduler_config.json."
        ) from None
    return data


def _tokenizers(
    target: Path,
    family: Family,
    found: read.Checkpoint,
    files: dict[str, manifest.File],
    progress: Progress,
) -> dict[str, manifest.Tokenizer]:
    from .checkpoint import tokenizer

    result: dict[str, manifest.Tokenizer] = {}
    classes = {folder: kind for folder, kind in family.tokenizers.items() if found.has(folder)}
    length: int | None = None  # that of the first tokenizer, for those that follow it
    for done, (folder, kind) in enumerate(classes.items()):
        progress(Event("tokenizer", folder, done, len(classes)))
        own = family.tokens_of(found.settings, folder)
        written = tokenizer.write(target, folder, length if own is None else own, kind, family.template)
        length = length or written.length
        if written.added:
            files[written.file] = _added(target, written.file)
        result[folder] = manifest.Tokenizer(written.file, written.length, written.pad_id, written.template)
    return result


def _graphs(
    family: Family,
    found: read.Checkpoint,
    target: Path,
    kinds: dict[str, str],
    tensors: dict[str, dict[str, headers.Tensor]],
    files: dict[str, manifest.File],
    progress: Progress,
) -> dict[str, manifest.Component]:
    from .graphs import trace

    graphs = family.graphs({folder: part.config for folder, part in found.parts.items()})
    components = {}
    unused = {folder: set(table) for folder, table in tensors.items()}
    for done, graph in enumerate(graphs):
        progress(Event("trace", graph.component, done, len(graphs)))
        kind = kinds[graph.folder]
        file = f"{graph.folder}/{graph.file}"
        written = trace.write(graph, kind, tensors[graph.folder], target / file)
        unused[graph.folder] -= written.tensors
        for added in filter(None, (file, written.buffers)):
            files[added] = _added(target, added)
        dtypes = {"weight": trace.NUMPY[kind]}
        components[graph.component] = manifest.Component(
            graph=file,
            weights=written.files,
            precision=kind,
            parameters=written.parameters,
            opset=graph.opset,
            inputs=tuple(manifest.TensorSpec(p.name, dtypes.get(p.dtype, p.dtype), p.shape) for p in graph.inputs),
            outputs=tuple(manifest.TensorSpec(p.name, dtypes.get(p.dtype, p.dtype), p.shape) for p in graph.outputs),
        )
    for folder, names in unused.items():
        names = {n for n in names if not n.endswith("position_ids")}  # old CLIP checkpoints carry this counter
        if names:
            progress(Event("note", f"{folder}: no graph uses {len(names)} tensors, such as {min(names)!r}", 0, 0))
    return components


def _parity(target: Path, components: dict[str, manifest.Component], progress: Progress) -> tuple[manifest.Parity, ...]:
    from .checks import parity

    count = 0

    def report(result: manifest.Parity) -> None:
        nonlocal count
        count += 1
        progress(Event("parity", describe(result), count, 2 * len(components)))

    try:
        return parity.check(target, components, report, target)
    except ParityError as error:
        raise ParityError(f"No bundle was made: {error} {WITHOUT}") from None


def describe(result: manifest.Parity) -> str:
    """Return one comparison as a line of text."""
    if result.relative_l2 is None:
        return f"{result.component}: {result.note}"
    shapes = ", ".join("x".join(map(str, shape)) for shape in result.shapes.values())
    note = f" ({result.note})" if result.note else ""
    return (
        f"{result.component} at {shapes}: relative L2 {result.relative_l2:.1e} (gate {result.gate:g}), "
        f"maximum {result.maximum:.1e}{note}"
    )


def _added(target: Path, file: str) -> manifest.File:
    return manifest.File(weights.digest(target / file), (target / file).stat().st_size, False)


def _provenance(found: read.Checkpoint, origin: Origin | None, loras: Sequence[Lora]) -> manifest.Provenance:
    settings = found.settings
    if origin is not None:
        settings = dataclasses.replace(settings, source=origin.name, revision=origin.commit)
    source = settings.source if settings.source not in ("", "unknown") else found.root.resolve().name
    versions = {package: importlib.metadata.version(package) for package in VERSIONS}
    merged = []
    for lora in loras:
        with headers.reading(lora.path):
            merged.append(manifest.Merged(lora.path.name, weights.digest(lora.path), lora.scale))
    return manifest.Provenance(source, settings.revision, settings.licence, settings.credits, versions, tuple(merged))
