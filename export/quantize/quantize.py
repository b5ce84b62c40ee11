"""Quantize the large matrices of a bundle to 8 bits: for processors (int8), or for GPUs (w8a8, fp8; see `qdq`).

On processors with dot products of bytes (VNNI) all components become int8. Weights have a scale per output channel,
embedding tables one scale. Activations get a scale at each call from their range (ONNX Runtime's dynamic quantization:
DynamicQuantizeLinear and MatMulInteger). In autoencoders only the weights are int8, and ONNX Runtime widens them when
it loads the graph: convolutions of bytes would be slower and coarser. For GPUs only the denoiser changes.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...errors import BundleError, ParityError, UsageError
from ...runtime.bundle import bundle_json, manifest
from ...runtime.bundle import reader as bundles
from ...runtime.bundle.families import Kind as ComponentKind
from ...runtime.bundle.families import family_of, role_of
from ...runtime.bundle.limits import QUANTIZED
from ...runtime.lora.inputs import rank_of
from ...runtime.storage.directory import NewDirectory
from ..checkpoint import convert, headers, read
from ..checks.fidelity import PROMPTS, near
from ..checks.footprint import with_footprints
from ..checks.fp32_twin import folders_in, widened, write_bundle
from ..families.registry import find
from ..graphs import trace
from ..graphs.cut import parts_of
from ..graphs.fold import fold_transposes
from . import parity as quantized_parity
from .qdq import KINDS, Kind, calibration_feeds, largest_inputs, quantize_products

GATE = 30.0  # dB of the pictures compared with those of the source bundle in fp32
CALIBRATION = ("a blue bird", "a face that laughs", "a cup of tea", "a flag", "a car", "a tall tower", "rain", "a cat")
INT8 = "int8"
OPERATORS = ["MatMul", "Gather"]
STORED = {
    ir.DataType.FLOAT: "F32", ir.DataType.INT8: "I8", ir.DataType.UINT8: "U8", ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32", ir.DataType.BOOL: "BOOL", ir.DataType.FLOAT16: "F16",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
}  # fmt: skip
Progress = Callable[[str, int, int], None]  # the current work, steps done, all steps


def quantize(
    source: Path,
    out: Path,
    *,
    kind: str = INT8,
    prompts: Sequence[str] = PROMPTS,
    gate: float = GATE,
    progress: Progress = lambda what, done, total: None,
) -> manifest.Manifest:
    """Write the bundle directory `source`, quantized to `kind`, to the new directory `out`; return its manifest.

    The result is compared with the source's weights in fp32: each component on the same inputs (`quantize.parity`), and
    pictures of `prompts` from the same noise. Both results go into the manifest. So does the source's own fidelity to
    its checkpoint in fp32, if it was measured. For "w8a8" and "fp8" the prompts of `CALIBRATION` give the ranges of
    activations.

    Raises UsageError for an unknown kind, BundleError for a bundle that is quantized already or draws videos,
    ParityError for a component beyond its gate or pictures below `gate` dB, OutputError for `out`.
    """
    if kind not in QUANTIZED:
        raise UsageError(f"unknown kind {kind!r}. Choose one of {', '.join(QUANTIZED)}.")
    opened = bundles.read(source)
    content = opened.manifest
    if kind == INT8:  # a processor does the Euler step in numpy, so graphs without weights are left out
        content = dataclasses.replace(content, components={n: c for n, c in content.components.items() if c.weights})
    if any(map(rank_of, content.components.values())):
        raise BundleError(
            f"the bundle {content.name!r} takes LoRA files at run time, which a quantized one cannot.",
            "Export the checkpoint again without --lora-rank, and quantize that bundle.",
        )
    already = [c.precision for c in content.components.values() if c.precision in QUANTIZED]
    if content.video is not None or already:
        raise BundleError(
            f"the bundle {content.name!r} {'draws videos' if content.video else f'is in {already[0]} already'}, "
            "and Segue does not quantize it. Choose a bundle that draws pictures, in fp16 or fp32."
        )
    chosen = list(content.components) if kind == INT8 else [family_of(content).denoiser]
    narrow = [name for name in chosen if content.components[name].precision == "bf16"]
    if narrow:
        raise BundleError(
            f"{', '.join(narrow)} of {content.name!r} are in bf16, which the processor does not run. Export "
            "with --precision fp16 first."
        )
    kept = [tokenizer.file for tokenizer in content.tokenizers.values()]
    kept += [content.prompts] if content.prompts else []
    kept += [file for file in content.files if Path(file).name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))]
    for name in content.components.keys() - chosen:
        kept += [*content.components[name].graphs, *content.components[name].weights]
    total = len(chosen) + len(prompts) + 3
    with NewDirectory(out) as new:
        with tempfile.TemporaryDirectory(dir=new.path) as scratch:
            progress("copying", 0, total)
            files = {}
            for file in dict.fromkeys(kept):
                target = new.path / file
                target.parent.mkdir(parents=True, exist_ok=True)
                digest = convert.place(opened.path(file), target)
                files[file] = manifest.File(digest, target.stat().st_size, False)
            components = dict(content.components)
            family = find(read.read_index(opened.directory))
            folders = folders_in(opened.directory, content)
            configs = {f: read.read_json(opened.directory / f / "config.json", opened.directory) for f in folders}
            graphs = {graph.component: graph for graph in family.graphs(configs)}
            progress("fp32", 1, total)
            full = write_bundle(opened.directory, content, Path(scratch) / "full")
            for done, name in enumerate(chosen):
                progress(name, 2 + done, total)
                graph = content.components[name].graph
                weights = graph.removesuffix(".onnx") + f"_{kind}.safetensors"
                (new.path / graph).parent.mkdir(exist_ok=True)
                work = Path(scratch) / name
                work.mkdir()
                _save(_narrowed(opened, name, kind, full, work), new.path / graph, new.path / weights)
                shutil.rmtree(work)
                for file in (graph, weights):
                    held = new.path / file
                    files[file] = manifest.File(convert.digest(held), held.stat().st_size, False)
                components[name] = _component(content.components[name], weights, kind)
            made = dataclasses.replace(
                content,
                components=components,
                files=dict(sorted(files.items())),
                parity=tuple(r for r in content.parity if r.component in content.components.keys() - chosen),
                engines={},
                provenance=dataclasses.replace(content.provenance, single_file=""),  # it holds no checkpoint
            )
            if kind == INT8:
                made = _in_parts(made, content, new.path)
            (new.path / manifest.FILE_NAME).write_bytes(bundle_json.dump(made))
            progress("parity", 2 + len(chosen), total)
            parity = made.parity + quantized_parity.check(full, new.path, chosen, graphs, prompts[:2])
            found = near(full, new.path, prompts, lambda n: progress("drawing", total - len(prompts) + n, total))
            if found < gate:
                raise ParityError(
                    f"No bundle was made: pictures in {kind} have {found:.1f} dB compared with {content.name!r} in "
                    f"fp32, below the gate of {gate:g}. Use the bundle unquantized."
                )
            beside = manifest.Fidelity(f"{opened.digest} in fp32", len(prompts), found, gate, content.fidelity)
        made = dataclasses.replace(with_footprints(new.path, made), parity=parity, fidelity=beside)
        (new.path / manifest.FILE_NAME).write_bytes(bundle_json.dump(made))
        new.commit()
    return made


def _narrowed(bundle: bundles.Bundle, name: str, kind: str, full: Path, scratch: Path) -> ir.Model:
    """Return the graph of a component in 8 bits, its weights in memory; `full` is the bundle in fp32."""
    spec = bundle.manifest.components[name]
    if kind != INT8:
        return _static(bundle, name, KINDS[kind], scratch)
    if _convolves(name):
        return _narrow(ir.load(bundle.path(spec.graph)))
    return _dynamic(full / spec.graph, scratch)


def _in_parts(made: manifest.Manifest, source: manifest.Manifest, root: Path) -> manifest.Manifest:
    """Return the manifest with the components that `source` has in parts cut again, into parts no larger."""
    components, files = dict(made.components), dict(made.files)
    for name, spec in made.components.items():
        if before := source.components[name].parts:
            parts = parts_of(root, made, name, max(part.bytes for part in before))
            components[name] = dataclasses.replace(spec, parts=parts)
            for part in parts:
                held = root / part.graph
                files[part.graph] = manifest.File(convert.digest(held), held.stat().st_size, False)
    return dataclasses.replace(made, components=components, files=dict(sorted(files.items())))


def _convolves(name: str) -> bool:
    return role_of(name).kind in (ComponentKind.ENCODER, ComponentKind.DECODER, ComponentKind.PREVIEW)


def _static(bundle: bundles.Bundle, name: str, kind: Kind, scratch: Path) -> ir.Model:
    """Return the graph of a component with its matrices in 8 bits, calibrated on pictures."""
    graph = bundle.path(bundle.manifest.components[name].graph)
    largest = largest_inputs(graph, calibration_feeds(bundle, name, CALIBRATION, scratch), scratch)
    model = ir.external_data.load_to_model(ir.load(graph))
    quantize_products(model, largest, kind)
    return model


def _component(spec: manifest.Component, weights: str, kind: str) -> manifest.Component:
    """Return the entry of a quantized component. The inputs and outputs of `_dynamic` are float32."""
    if kind == INT8 and not _convolves(spec.graph):
        spec = dataclasses.replace(spec, inputs=widened(spec.inputs), outputs=widened(spec.outputs))
    return dataclasses.replace(spec, weights=(weights,), precision=kind, parts=())


def _dynamic(twin: Path, scratch: Path) -> ir.Model:
    """Return the float32 graph at `twin` with matrices and tables in int8, quantized by ONNX Runtime's tool."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = ir.load(twin)
    fold_transposes(model)
    plain, narrow = scratch / "plain.onnx", scratch / "int8.onnx"
    ir.save(model, plain, external_data="plain.data")
    with _without_advice():
        quantize_dynamic(
            plain, narrow, OPERATORS, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True,
            extra_options={"DefaultTensorType": ir.DataType.FLOAT},  # of values whose type onnx does not infer
        )  # fmt: skip
    return ir.external_data.load_to_model(ir.load(narrow))


def _narrow(model: ir.Model) -> ir.Model:
    """Return a graph with its large weights in int8, each widened by its own DequantizeLinear."""
    graph = ir.external_data.load_to_model(model).graph
    for name, value in list(graph.initializers.items()):
        held = value.const_value
        if held is None or not held.dtype.is_floating_point() or len(held.shape) < 2 or held.nbytes <= trace.SMALL:
            continue
        array = held.numpy().astype(np.float32)
        largest = np.abs(array).max(axis=tuple(range(1, array.ndim)))
        scale = (np.maximum(largest, np.finfo(np.float16).tiny * 127) / 127).astype(held.numpy().dtype)
        steps = array / scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
        parts = []
        for suffix, data in (("quantized", steps.round().clip(-127, 127).astype(np.int8)), ("scale", scale)):
            part = ir.Value(name=f"{name}_{suffix}", const_value=ir.tensor(data))
            part.shape, part.dtype = ir.Shape(data.shape), ir.DataType.INT8 if suffix == "quantized" else held.dtype
            graph.register_initializer(part)
            parts.append(part)
        node = ir.node("DequantizeLinear", parts, attributes={"axis": 0})
        node.outputs[0].name = f"{name}_widened"
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        graph.insert_before(graph[0], node)
        del graph.initializers[name]
    return model


def _save(model: ir.Model, graph: Path, weights: Path) -> None:
    """Write a graph, and a safetensors file with its initializers above SMALL."""
    initializers = model.graph.initializers
    arrays = {n: v.const_value for n, v in initializers.items() if v.const_value and v.const_value.nbytes > trace.SMALL}
    head = headers.encode([(n, STORED[a.dtype], tuple(a.shape.numpy()), a.nbytes) for n, a in arrays.items()])
    offset = len(head)
    with weights.open("xb") as file:
        file.write(head)
        for name, array in arrays.items():
            file.write(array.tobytes())
            initializers[name].const_value = ir.ExternalTensor(
                weights.name, offset, array.nbytes, array.dtype, shape=ir.Shape(array.shape.numpy()), name=name
            )
            offset += array.nbytes
    model.producer_name, model.producer_version = "segue", ""
    ir.save(model, graph)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the advice to fold shapes first, because export did."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
