"""Static quantization of a denoiser for GPUs: its matrices and their inputs in int8 or float8.

The graph gets pairs of QuantizeLinear and DequantizeLinear. TensorRT and TensorRT-RTX turn them into products of int8
(W8A8) or E4M3 numbers. Scales of activations come from calibration: the largest magnitudes while prompts are rendered.
Weights have a scale per output channel in int8, and one scale in float8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ...engines.ort.engine import OrtEngine
from ...runtime.bundle.reader import Bundle
from ...runtime.notices import silent
from ...runtime.pipeline import Model
from ...runtime.request import Request
from ..graphs import trace
from ..graphs.fold import fold_transposes

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A number format of 8 bits: its ONNX and numpy types, its largest value, and whether each channel has a scale."""

    onnx: ir.DataType
    numpy: np.dtype
    largest: float
    by_channel: bool


KINDS = {
    "w8a8": Kind(ir.DataType.INT8, np.dtype(np.int8), 127.0, True),
    "fp8": Kind(ir.DataType.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448.0, False),
}


def calibration_feeds(bundle: Bundle, component: str, prompts: Sequence[str], scratch: Path) -> Iterator[Feeds]:
    """Draw `prompts`; yield the inputs of `component` in each call of every picture, once.

    Each call is a file in `scratch`, deleted once it is read, so that memory holds one call at a time. The 224 calls of
    SD3-Medium, with 28 steps at 1024 pixels, have half a gigabyte of latents. Each file also repeats the states of its
    prompt: with T5 the files take about 3 GB.
    """
    files: list[Path] = []

    def keep(name: str, feeds: Feeds, made: Feeds) -> None:
        if name == component:
            files.append(scratch / f"call_{len(files)}.npz")
            np.savez(files[-1], **feeds)  # type: ignore[arg-type]  # its stub has no named arrays

    with Model(bundle, on_call=keep) as model, silent():  # before the first yield: two networks would not fit
        for _ in model.pictures(Request(list(prompts))):
            pass
    return map(_taken, files)


def _taken(file: Path) -> Feeds:
    with np.load(file, allow_pickle=False) as held:
        feeds = dict(held)
    file.unlink()
    return feeds


def largest_inputs(graph: Path, feeds: Iterable[Feeds], scratch: Path) -> dict[str, float]:
    """Return the largest magnitude of each matrix's input in the ONNX file `graph`, over `feeds`."""
    model = ir.external_data.load_to_model(ir.load(graph))
    names = list(dict.fromkeys(str(node.inputs[0].name) for node in _products(model)))  # type: ignore[union-attr]
    values = {value.name: value for node in model.graph for value in (*node.inputs, *node.outputs) if value}
    for number, name in enumerate(names):
        size = ir.node("Abs", [values[name]])
        most = ir.node("ReduceMax", size.outputs, attributes={"keepdims": 0})
        wide = ir.node("Cast", most.outputs, attributes={"to": ir.DataType.FLOAT})
        for node, part in zip((size, most, wide), ("size", "most", "wide"), strict=True):
            node.outputs[0].name = f"{part}_{number}"
        wide.outputs[0].type, wide.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
        model.graph.extend([size, most, wide])
        model.graph.outputs.append(wide.outputs[0])
    path = scratch / "calibrated.onnx"
    ir.save(model, path, external_data="calibrated.data")
    found = dict.fromkeys(names, 0.0)
    with OrtEngine(path) as engine:
        for feed in feeds:
            made = engine.run(feed)
            for number, name in enumerate(names):
                found[name] = max(found[name], float(made[f"wide_{number}"]))
    return found


def quantize_products(model: ir.Model, largest: Mapping[str, float], kind: Kind) -> int:
    """Quantize the matrices of `model` and their inputs, in place; return the number of matrices.

    `largest` is the result of `largest_inputs`. The weights must be in memory.
    """
    fold_transposes(model)
    done: dict[str, ir.Value] = {}
    weights: dict[tuple[ir.Value, int], ir.Value] = {}  # one may be multiplied twice
    products = list(_products(model))
    for node in products:
        given, weight = node.inputs[0], node.inputs[1]
        assert given is not None
        assert weight is not None
        name = str(given.name)
        if name not in done:
            scale = np.array(max(largest[name], 1e-4) / kind.largest, _dtype(weight))
            done[name] = _quantized(model, node, given, scale, kind)
        node.replace_input_with(0, done[name])
        axis = _output_axis(node)
        if (weight, axis) not in weights:
            weights[weight, axis] = _narrow(model, node, weight, axis, kind)
        node.replace_input_with(1, weights[weight, axis])
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    return len(products)


def _products(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that multiply by a matrix of learned weights, transposed or not."""
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        made = weight.producer() if weight is not None else None
        if made is not None and made.op_type == "Transpose":
            weight = made.inputs[0]
        held = None if weight is None else weight.const_value
        if held is not None and len(held.shape) == 2 and held.nbytes > trace.SMALL:
            found.append(node)
    return found


def _quantized(model: ir.Model, node: ir.Node, given: ir.Value, scale: np.ndarray, kind: Kind) -> ir.Value:
    """Return `given`, quantized and dequantized before `node`."""
    name = str(given.name)
    parts = [_constant(model, f"{name}_scale", scale), _constant(model, f"{name}_zero", np.zeros((), kind.numpy))]
    narrow = ir.node("QuantizeLinear", [given, *parts])
    wide = ir.node("DequantizeLinear", [narrow.outputs[0], *parts])
    narrow.outputs[0].name, wide.outputs[0].name = f"{name}_narrow", f"{name}_wide"
    model.graph.insert_before(node, [narrow, wide])
    return wide.outputs[0]


def _output_axis(node: ir.Node) -> int:
    """Return the axis of the output channels of a product's weight."""
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return 0 if transposed else 1


def _narrow(model: ir.Model, node: ir.Node, weight: ir.Value, axis: int, kind: Kind) -> ir.Value:
    """Return a weight from a constant of 8 bits, before `node`; its output channels are on `axis`."""
    assert weight.const_value is not None
    array, name = weight.const_value.numpy().astype(np.float32), f"{weight.name}_{axis}"
    most = np.abs(array).max(axis=1 - axis) if kind.by_channel else np.abs(array).max()
    scale = (np.maximum(most, 1e-4) / kind.largest).astype(_dtype(weight))
    steps = array / np.expand_dims(scale.astype(np.float32), 1 - axis) if kind.by_channel else array / np.float32(scale)
    steps = steps.round() if kind.numpy == np.int8 else steps
    stored = steps.clip(-kind.largest, kind.largest).astype(kind.numpy)
    parts = [
        _constant(model, f"{name}_narrow", stored),
        _constant(model, f"{name}_scale", scale),
        _constant(model, f"{name}_zero", np.zeros(scale.shape, kind.numpy)),
    ]
    wide = ir.node("DequantizeLinear", parts, attributes={"axis": axis} if kind.by_channel else {})
    wide.outputs[0].name = f"{name}_wide"
    model.graph.insert_before(node, wide)
    return wide.outputs[0]


def _dtype(weight: ir.Value) -> np.dtype:
    assert weight.const_value is not None
    return weight.const_value.dtype.numpy()


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(array)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value
