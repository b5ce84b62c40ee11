"""Export a diffusers checkpoint as a bundle, without loading its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, CheckpointError, ParityError, UsageError
from ..runtime.bundle import bundle_json, manifest
from ..runtime.bundle.families import in_bf16
from ..runtime.bundle.limits import PART_BYTES, PRECISIONS
from ..runtime.request import check_size
from ..runtime.storage.directory import NewDirectory
from .checkpoint import convert as weights
from .checkpoint import copy, headers, read
from .checkpoint.defaults import AS_STATED, Asked, find_defaults
from .checkpoint.hub import Origin
from .checkpoint.lora.merge import Lora, merge
from .checkpoint.prompts import list_of_names
from .checkpoint.provenance import provenance
from .checkpoint.single.open import read_staged, tensors_in
from .checks import fidelity, preview
from .checks.footprint import with_footprints
from .families.checks import class_of
from .families.configs import check_known
from .families.registry import Family, find
from .families.step_inputs import inputs_for
from .graphs.cost_model import cost_model
from .graphs.cut import parts_of
from .precision import WITHOUT, in_fp32, tell_mixed


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
    defaults: Asked = AS_STATED,
    lora_rank: int = 0,
    single: str = "",
    title: str = "",
    progress: Progress = lambda event: None,
) -> manifest.Manifest:
    """Export the diffusers checkpoint directory `source` as the bundle `out`, and return its manifest.

    `precision` keeps the weight files unchanged ("keep"), or converts every floating tensor to fp16, bf16 or fp32.
    `parity` compares each graph with PyTorch, and pictures in fp16 or bf16 with fp32 (docs/guide/export.md). It also
    keeps folders that overflow fp16 in fp32. `name` is the bundle's name, by default the last part of `out`. `loras`
    are merged: the changed weights go into a patch file, and the checkpoint's own weights stay unchanged. `origin` is
    the checkpoint's source on the hub. A graph with more than `part_bytes` of weights is also written in parts, which a
    runtime can load one by one. `trained` holds each (height, width) that the model was trained at; empty: those in the
    checkpoint's segue.json. `defaults` replaces the sampler, steps, guidance or sigmas that the checkpoint states. The
    denoisers take LoRA files of up to `lora_rank` at run time. A prompts.json in the checkpoint becomes the bundle's
    list of names. `single` names the single file in a staged checkpoint, and `title` the model
    (`checkpoint.single.stage.staged` gives both).

    Memory does not grow with the weights, except in the child process that checks parity. `out` appears whole or not at
    all. Raises CheckpointError, OutputError, ParityError; UsageError for an unknown precision or size.
    """

    def note(text: str) -> None:
        progress(Event("note", text, 0, 0))

    if precision not in PRECISIONS:
        raise UsageError(f"Unknown precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    if part_bytes < 1:
        raise UsageError(f"part_bytes must be 1 or more, got {part_bytes!r}. Leave it out for the default.")
    index = read.read_index(source)
    family = find(index)
    family.check(index)
    found = read_staged(source, (*family.folders, *family.optional), single, title, note)
    found, told = _with_defaults(found, family, origin, loras, defaults)
    lacking = [folder for folder in family.folders if folder not in found.parts]
    if lacking:
        raise CheckpointError(
            f"{source} has no {lacking[0]}, which the family {family.name} needs. Fetch the whole checkpoint again."
        )
    kinds = {f: read.precision(p) if precision == "keep" else precision for f, p in found.parts.items()}
    for folder, part in found.parts.items():
        check_known(f"{folder}/config.json", part.config, class_of(index, folder))
    facts = family.facts(found)
    sizes = tuple(check_size(size, facts.sizes) for size in trained)
    wanted = dict.fromkeys((*found.parts, single), precision)
    islands = in_fp32(found, facts.wide, kinds, parity, note)
    for folder, why in islands.items():
        wanted[folder] = kinds[folder] = "fp32"
        note(f"{folder} is written in fp32: {why}")
    if precision == "keep":
        tell_mixed(found, {folder: kind for folder, kind in kinds.items() if folder not in islands}, note)
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
        provenance=provenance(found, origin, loras),
        files={file: manifest.File("", 0, True) for file in found.files},
        video=facts.video,
        zero_negative=facts.zero_negative,
        islands=islands,
        prompts=list_of_names(found),
    )
    _encode(draft, source)  # fails before the work if no reader could open the bundle
    for text in (*told, *facts.notes):
        note(text)
    with new:
        files = copy.copy(found, new.path, wanted, lambda file, done, total: progress(Event("copy", file, done, total)))
        tokenizers = _tokenizers(new.path, family, found, files, progress)
        # The files as written, since converting moves every offset.
        tensors, patches = tensors_in(found, new.path, kinds)
        files |= {patch: _added(new.path, patch) for patch in patches}
        for folder, patch in merge(loras, tensors, kinds, new.path).items():
            files[patch] = _added(new.path, patch)
            tensors[folder] |= headers.read(new.path / patch, patch)
        takes = inputs_for(facts.sampler)
        components = _graphs(family, found, new.path, kinds, tensors, files, takes, lora_rank, progress)
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
            components = with_footprints(new.path, counted, note).components
            results = _parity(new.path, components, progress, single)
        files = dict(sorted(files.items()))
        result = dataclasses.replace(draft, components=components, tokenizers=tokenizers, files=files, parity=results)
        (new.path / manifest.FILE_NAME).write_bytes(_encode(result, source))
        if parity:
            progress(Event("measure", "pictures", 0, 1))
            beside = fidelity.beside_full(source, new.path, result, loras, note=note)
            result = dataclasses.replace(result, fidelity=beside, preview=preview.fitted(new.path, result, note))
            (new.path / manifest.FILE_NAME).write_bytes(_encode(result, source))
        new.commit()
    if narrow := in_bf16(result):
        note(
            f"{', '.join(narrow)}: in bf16, which ort-cpu does not run. For a processor, export with --precision fp16."
        )
    return result


def _with_defaults(
    found: read.Checkpoint,
    family: Family,
    origin: Origin | None,
    loras: Sequence[Lora],
    asked: Asked,
) -> tuple[read.Checkpoint, list[str]]:
    """Return the checkpoint with all its defaults, and lines that tell which were taken, why, and what is left out."""
    names = [lora.path.name for lora in loras]
    own = found.title or found.root.resolve().name
    names += [name for name in (origin and origin.name, found.settings.source, own) if name]
    scheduler = class_of(found.index, "scheduler")
    result = find_defaults(found, family.row, names, scheduler, dataclasses.asdict(asked))
    told = [result.reason]
    if result.hint:
        told.append(f"{result.hint}. If the model takes few steps, give --steps and --guidance.")
    if (found.root / read.STUDENT).is_file():
        told.append(f"{read.STUDENT} is left out: it names paths of its maker's machine")
    if rest := read.left_out(found):
        told.append(rest)
    return dataclasses.replace(found, settings=result.settings), told


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
        length_of = length if own is None else own
        written = tokenizer.write(target, folder, length_of, kind, family.template, family.chat)
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
    takes: frozenset[str],
    rank: int,
    progress: Progress,
) -> dict[str, manifest.Component]:
    from .graphs import trace

    graphs = family.graphs({folder: part.config for folder, part in found.parts.items()}, takes)
    components = {}
    unused = {folder: set(table) for folder, table in tensors.items()}
    for done, graph in enumerate(graphs):
        progress(Event("trace", graph.component, done, len(graphs)))
        kind = kinds[graph.folder]
        # A single file lies at the root, and no graph may read from above its own folder
        at_root = found.single in found.parts[graph.folder].weights
        file = f"{graph.component}.onnx" if at_root else f"{graph.folder}/{graph.file}"
        written = trace.write(graph, kind, tensors[graph.folder], target / file, at_root, rank)
        unused[graph.folder] -= written.tensors
        for added in filter(None, (file, written.buffers, written.names)):
            files[added] = _added(target, added)
        taken = (*graph.inputs, *written.added)
        dtypes = {"weight": trace.NUMPY[kind]}
        components[graph.component] = manifest.Component(
            graph=file,
            weights=written.files,
            precision=kind,
            parameters=written.parameters,
            opset=graph.opset,
            inputs=tuple(manifest.TensorSpec(p.name, dtypes.get(p.dtype, p.dtype), p.shape) for p in taken),
            outputs=tuple(manifest.TensorSpec(p.name, dtypes.get(p.dtype, p.dtype), p.shape) for p in graph.outputs),
            weight_bytes=written.bytes if at_root else 0,
        )
    for folder, names in unused.items():
        names = {n for n in names if not n.endswith("position_ids")}  # old CLIP checkpoints carry this counter
        if names:
            progress(Event("note", f"{folder}: no graph uses {len(names)} tensors, such as {min(names)!r}", 0, 0))
    return components


def _parity(
    target: Path, components: dict[str, manifest.Component], progress: Progress, single: str = ""
) -> tuple[manifest.Parity, ...]:
    from .checks import parity

    count = 0

    def report(result: manifest.Parity) -> None:
        nonlocal count
        count += 1
        progress(Event("parity", describe(result), count, 2 * len(components)))

    try:
        return parity.check(target, components, report, target, single)
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
