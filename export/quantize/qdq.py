"""Static quantization of a denoiser for GPUs: its matrices and what they are multiplied with in int8 or float8.

The graph gets pairs of QuantizeLinear and DequantizeLinear, which TensorRT and TensorRT-RTX turn into products of int8
(W8A8) or E4M3 numbers. Scales of activations come from calibration: the largest magnitudes while prompts are rendered.
Weights are scaled by output channel in int8, as a whole in float8.
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
from ...runtime.pipeline import Model
from ...runtime.request import Request
from ..graphs import trace
from ..graphs.fold import fold_transposes

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A number format of 8 bits: its ONNX and numpy types, the largest value used, whether weights have many scales."""

    onnx: ir.DataType
    numpy: np.dtype
    largest: float
    by_channel: bool


KINDS = {
    "w8a8": Kind(ir.DataType.INT8, np.dtype(np.int8), 127.0, True),
    "fp8": Kind(ir.DataType.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448.0, False),
}


def calibration_feeds(bundle: Bundle, component: str, prompts: Sequence[str], scratch: Path) -> Iterator[Feeds]:
    """Draw `prompts`; return what `component` was given on the way, each call of every picture, for one pass.

    Each call waits in a file in `scratch`, which goes as it is passed, so that memory holds one of them: 224 of
    SD3-Medium's, of 28 steps at 1024 pixels, are half a gigabyte of latents. A file has its prompt's states as well,
    which all calls of a picture share in memory: some 3 GB of files with T5.
    """
    files: list[Path] = []

    def keep(name: str, feeds: Feeds, made: Feeds) -> None:
        if name == component:
            files.append(scratch / f"call_{len(files)}.npz")
            np.savez(files[-1], **feeds)  # type: ignore[arg-type]  # its stub knows of no names

    with Model(bundle, on_call=keep) as model:  # before the first is given: two networks at once are larger than calls
        for _ in model.pictures(Request(list(prompts))):
            pass
    return map(_taken, files)


def _taken(file: Path) -> Feeds:
    with np.load(file, allow_pickle=False) as held:
        feeds = dict(held)
    file.unlink()
    return feeds


def largest_inputs(graph: Path, feeds: Iterable[Feeds], scratch: Path) -> dict[str, float]:
    """Return the largest magnitude of what each matrix of the ONNX file `graph` is multiplied with, over `feeds`."""
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
    """Quantize the matrices of `model`, in place, and what they are multiplied with; return how many there are.

    `largest` is that of `largest_inputs`. The weights have to be in memory.
    """
    fold_transposes(model)
    done: dict[str, ir.Value] = {}
    weights: dict[tuple[ir.Value, int], ir.Value] = {}  # one may be multiplied with twice
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
    """Return `given` after it went through the number format, before `node`."""
    name = str(given.name)
    parts = [_constant(model, f"{name}_scale", scale), _constant(model, f"{name}_zero", np.zeros((), kind.numpy))]
    narrow = ir.node("QuantizeLinear", [given, *parts])
    wide = ir.node("DequantizeLinear", [narrow.outputs[0], *parts])
    narrow.outputs[0].name, wide.outputs[0].name = f"{name}_narrow", f"{name}_wide"
    model.graph.insert_before(node, [narrow, wide])
    return wide.outputs[0]


def _output_axis(node: ir.Node) -> int:
    """Return the axis of a product's weight that its output channels are on."""
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return 0 if transposed else 1


def _narrow(model: ir.Model, node: ir.Node, weight: ir.Value, axis: int, kind: Kind) -> ir.Value:
    """Return a weight, before `node`, out of a constant of 8 bits; its output channels are on `axis`."""
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
