"""Give the matrices of a traced graph inputs for a LoRA at run time (`runtime.lora.inputs`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...errors import UsageError
from ...runtime.bundle.families import Kind, role_of
from ...runtime.bundle.limits import MAX_RANK
from ...runtime.lora.inputs import DOWN, NAMES, PREFIX, SCALE, UP, is_adapter
from ..checkpoint.headers import Tensor
from ..checkpoint.lora.layouts import original_pieces
from ..families.graph import Graph, Port
from .attach import weights_of

HALF = ir.DataType.FLOAT16


def adapt(model: ir.Model, rank: int) -> tuple[Port, ...]:
    """Add the inputs of a LoRA of `rank` to a traced `model`, whose weights are still inputs; return the new inputs.

    A product x W^T becomes x W^T + (scale x A^T) B^T for each W [out, in] that only products use. In a bf16 graph the
    inputs are float32, because numpy has no bf16.
    """
    if not 1 <= rank <= MAX_RANK:
        raise UsageError(f"the rank of LoRA files must be 1 to {MAX_RANK}, got {rank!r}. Choose 64.")
    graph, ports = model.graph, []
    scale = ir.Value(name=SCALE, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    scales: dict[ir.DataType, ir.Value] = {}
    made: list[ir.Value] = []
    for name, weight in weights_of(model).items():
        products = _products(weight)
        if not products or weight.dtype is None or not name.endswith(".weight"):
            continue
        out, taken = (size for size in weight.shape or () if isinstance(size, int))
        module, dtype = name.removesuffix(".weight"), weight.dtype
        outer = HALF if dtype == HALF else ir.DataType.FLOAT
        first = products[0]
        if dtype not in scales:
            scales[dtype] = _cast(graph[0], scale, dtype)
        halves = []
        for suffix, shape in ((DOWN, (rank, taken)), (UP, (out, rank))):
            value = ir.Value(name=f"{PREFIX}{module}{suffix}", type=ir.TensorType(outer), shape=ir.Shape(shape))
            made.append(value)
            ports.append(Port(str(value.name), "float16" if outer == HALF else "float32", shape))
            turned = _insert(first, "Transpose", [_cast(first, value, dtype)], f"{value.name}.turned", perm=[1, 0])
            halves.append(turned)
        for product in products:
            _add(product, halves[0], halves[1], scales[dtype])
    if made:
        graph.inputs.extend([*made, scale])
        ports.append(Port(SCALE, "float32", (1,)))
    return tuple(ports)


def no_lora(graph: Path) -> dict[str, np.ndarray]:
    """Return feeds that change nothing, for the LoRA inputs of the graph at a path."""
    taken = [v for v in ir.load(graph).graph.inputs if is_adapter(v.name or "")]
    return {str(v.name): np.zeros(v.shape.numpy(), v.dtype.numpy()) for v in taken if v.shape and v.dtype}


def takes_lora(graph: Graph) -> bool:
    """Return whether a graph is a denoiser's."""
    return graph.weighted and role_of(graph.component).kind is Kind.DENOISER


def write_names(path: Path, graph: Graph, tensors: Mapping[str, Tensor], added: Iterable[Port], at_root: bool) -> str:
    """Write the file of `original_names` for the graph at `path`, and return its name in the bundle."""
    modules = {port.name[len(PREFIX) : -len(DOWN)] for port in added if port.name.endswith(DOWN)}
    folder = path.parent / graph.folder if at_root else path.parent
    data = original_names({n: t.shape for n, t in tensors.items() if t.shape}, modules)
    (folder / NAMES).write_bytes(data)
    return f"{graph.folder}/{NAMES}"


def original_names(shapes: Mapping[str, tuple[int, ...]], modules: set[str]) -> bytes:
    """Return JSON with the modules by their names in the original layout, dots as underscores.

    `shapes` are the denoiser's tensors. Each name has a list of [module, runs], where the runs [first, count] are the
    rows of B that the module takes.
    """
    found = {}
    for name, pieces in original_pieces(shapes).items():
        stem, _, kind = name.rpartition(".")
        own = [piece.tensor.removesuffix(".weight") for piece in pieces]
        if kind != "weight" or not set(own) <= modules:
            continue
        places = [range(shapes[p.tensor][0]) if p.rows is None else [int(row) for row in p.rows] for p in pieces]
        found[stem.replace(".", "_")] = [[module, _runs(rows)] for module, rows in zip(own, places, strict=True)]
    return json.dumps(found, separators=(",", ":")).encode()


def _runs(rows: range | list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([row, 1])
    return runs


def _products(weight: ir.Value) -> list[ir.Node]:
    """Return the products with a matrix as torch's linear layers make them; empty if anything else uses it."""
    if weight.shape is None or len(weight.shape) != 2:
        return []
    found: list[ir.Node] = []
    for use in weight.uses():
        node = use.node
        if node.op_type == "Gemm" and use.idx == 1 and _plain_gemm(node):
            found.append(node)
        elif node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]:
            after = [(one.node, one.idx) for one in node.outputs[0].uses()]
            if any(user.op_type != "MatMul" or place != 1 for user, place in after):
                return []
            found += [user for user, _ in after]
        else:
            return []
    return [node for node in found if node.graph is not None and node.inputs[0] is not None]


def _plain_gemm(node: ir.Node) -> bool:
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return bool(given.get("transB") == 1 and not given.get("transA") and given.get("alpha", 1.0) == 1.0)


def _add(product: ir.Node, down: ir.Value, up: ir.Value, scale: ir.Value) -> None:
    """Add the low-rank product to the output of a product."""
    value, given = product.outputs[0], product.inputs[0]
    assert product.graph is not None
    name, uses = f"{value.name}.lora", list(value.uses())
    low = ir.node("MatMul", [given, down])
    scaled = ir.node("Mul", [low.outputs[0], scale])
    wide = ir.node("MatMul", [scaled.outputs[0], up])
    total = ir.node("Add", [value, wide.outputs[0]])
    for number, node in enumerate((low, scaled, wide, total)):
        node.outputs[0].name = f"{name}.{number}"
    product.graph.insert_after(product, [low, scaled, wide, total])
    for use in uses:
        use.node.replace_input_with(use.idx, total.outputs[0])
    for place, output in enumerate(product.graph.outputs):
        if output is value:
            total.outputs[0].type, total.outputs[0].shape = value.type, value.shape
            total.outputs[0].name, value.name = value.name, f"{value.name}.plain"
            product.graph.outputs[place] = total.outputs[0]


def _cast(before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    if value.dtype == dtype:
        return value
    return _insert(before, "Cast", [value], f"{value.name}.cast.{dtype.name}", to=dtype.value)


def _insert(before: ir.Node, operator: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Value:
    node = ir.node(operator, inputs, attributes=attributes)  # type: ignore[arg-type]
    node.outputs[0].name = name
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return node.outputs[0]
