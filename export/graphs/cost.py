"""Compute the cost of one call of a graph at given sizes: floating-point operations, activations, bytes of weights.

The walk infers every value's shape node by node, and computes shape arithmetic; it reads no weights. Activations are
counted as ONNX Runtime holds them: it frees a value after its last use, lets an elementwise operator overwrite an input
at its last use, and reshapes without a copy. FLOPs count only matrix products, convolutions and attention. A
multiplication with its addition counts as two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from ...errors import CheckpointError

SMALL = 4096  # most numbers of a value whose content is computed
ALIASES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
IN_PLACE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Gelu", "Erf", "Sqrt", "Neg", "Exp", "Pow", "Clip", "Cast",
     "Softmax", "LayerNormalization", "RMSNormalization", "Cos", "Sin", "Where"}
)  # fmt: skip
FLOAT = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Cost:
    """One call of a graph. `activations` are the most bytes alive at one time, inputs and outputs included.

    `float_bytes` is the counted size of each float: ONNX Runtime's CPU computes fp16 in fp32.
    """

    flops: int
    activations: int
    weights: int
    nodes: int
    float_bytes: int


def cost(path: Path, sizes: Mapping[str, int], float_bytes: int | None = None, scores: bool = True) -> Cost:
    """Return the cost of the ONNX file at `path` with its free dimensions set by `sizes`.

    `float_bytes` is the size of every float (None: by the graph's dtypes). With `scores` an Attention holds the
    products of queries and keys, as ONNX Runtime's CPU kernel does; fused kernels do not. Raises CheckpointError for a
    dimension that `sizes` lacks, and if a shape cannot be inferred.
    """
    return Walk(onnx.load(path, load_external_data=False), sizes, path).cost(float_bytes, scores)


class Walk:
    """A graph's shapes at given sizes: `types` by value, and `numbers` of the small integer values."""

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, int], path: Path) -> None:
        self.graph, self.path = model.graph, path
        self.versions = {o.domain: o.version for o in model.opset_import}
        self.imports = list(model.opset_import)
        self.types: dict[str, onnx.TypeProto] = {}
        self.numbers: dict[str, np.ndarray] = {}
        self.made: dict[tuple[Any, ...], list[onnx.TypeProto | None]] = {}
        self.weights: dict[str, int] = {}
        for initializer in self.graph.initializer:
            kind = helper.make_tensor_type_proto(initializer.data_type, initializer.dims)
            self.types[initializer.name] = _known(kind)
            width = helper.tensor_dtype_to_np_dtype(initializer.data_type).itemsize
            self.weights[initializer.name] = width * math.prod(initializer.dims)
            if not initializer.external_data and math.prod(initializer.dims) <= SMALL:
                self.numbers[initializer.name] = numpy_helper.to_array(initializer)
        for value in self.graph.input:
            self.types[value.name] = self._sized(value, sizes)
        for node in self.graph.node:
            self._follow(node)

    def _sized(self, value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> onnx.TypeProto:
        kind = onnx.TypeProto()
        kind.CopyFrom(value.type)
        for dim in kind.tensor_type.shape.dim:
            if dim.dim_param:
                if dim.dim_param not in sizes:
                    raise CheckpointError(
                        f"{self.path} has the free dimension {dim.dim_param!r} without a size. Give one."
                    )
                dim.dim_value = sizes[dim.dim_param]
        return _known(kind)

    def _follow(self, node: onnx.NodeProto) -> None:
        names = [name for name in node.input if name]
        known = all(name in self.numbers for name in names)
        if node.op_type == "Shape":
            shape = self.shape(node.input[0])
            bounds = {a.name: a.i for a in node.attribute}
            array = np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], np.int64)
            return self._hold(node.output[0], array)
        if known and (names or node.op_type in ("Constant", "ConstantOfShape")) and self._small(node):
            with np.errstate(all="ignore"):  # both branches of a Where are computed, for example a log of 0
                made = ReferenceEvaluator(node).run(None, {name: self.numbers[name] for name in names})
            for name, array in zip(node.output, made, strict=True):
                self._hold(name, np.asarray(array))
            return None
        schema = defs.get_schema(node.op_type, self.versions.get(node.domain, 1), node.domain)
        # A network repeats its layers, so results are cached by operator, types and numbers
        key = (
            node.op_type, node.domain, tuple(map(bool, node.input)),
            tuple(a.SerializeToString() for a in node.attribute),
            tuple(self.types[name].SerializeToString() for name in names),
            tuple(self.numbers[name].tobytes() if name in self.numbers else None for name in names),
        )  # fmt: skip
        if key not in self.made:
            data = {name: self._as_typed(name) for name in names if name in self.numbers}
            types = {name: self.types[name] for name in names}
            inferred = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self.imports)
            self.made[key] = [inferred.get(name) for name in node.output]
        for name, found in zip(node.output, self.made[key], strict=True):
            if not name:
                continue
            if found is None or any(not d.HasField("dim_value") for d in found.tensor_type.shape.dim):
                raise CheckpointError(
                    f"the shape of {name!r}, made by {node.op_type} in {self.path}, cannot be inferred. Report it."
                )
            self.types[name] = _known(found)
        return None

    def _as_typed(self, name: str) -> onnx.TensorProto:
        """Return a value's numbers in its type, with float16 for bfloat16."""
        kind = helper.tensor_dtype_to_np_dtype(self.types[name].tensor_type.elem_type)
        return numpy_helper.from_array(self.numbers[name].astype(kind), name)

    def _small(self, node: onnx.NodeProto) -> bool:
        """Return whether a node over known numbers makes few numbers, as far as its inputs tell."""
        if node.op_type == "ConstantOfShape":
            return int(np.prod(self.numbers[node.input[0]])) <= SMALL
        if node.op_type == "Expand":
            return int(np.prod(self.numbers[node.input[1]])) <= SMALL
        if node.op_type == "Range":
            start, limit, delta = (float(self.numbers[name]) for name in node.input)
            return (limit - start) / delta <= SMALL
        return True

    def _hold(self, name: str, array: np.ndarray) -> None:
        self.types[name] = _known(
            helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        )
        if array.size <= SMALL:
            self.numbers[name] = array

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value."""
        return tuple(d.dim_value for d in self.types[name].tensor_type.shape.dim)

    def bytes(self, name: str, float_bytes: int | None) -> int:
        """Return the bytes of a value, with floats of `float_bytes`."""
        kind = self.types[name].tensor_type.elem_type
        width = helper.tensor_dtype_to_np_dtype(kind).itemsize
        if float_bytes is not None and kind in FLOAT:
            width = float_bytes
        return width * math.prod(self.shape(name))

    def cost(self, float_bytes: int | None, scores: bool) -> Cost:
        """Return the cost of a call; see `cost`."""
        last: dict[str, int] = {}
        for index, node in enumerate(self.graph.node):
            last |= dict.fromkeys(filter(None, node.input), index)
        end = len(self.graph.node)
        last |= {value.name: end for value in self.graph.output}
        owner: dict[str, str] = {}  # a value -> its buffer
        users: dict[str, int] = {}  # a buffer -> the last use of any value in it
        ending: dict[int, list[str]] = {}  # a node -> buffers that may end with it, unless a later value took them over
        alive: dict[str, int] = {}
        flops = most = held = 0

        def take(name: str, buffer: str | None, index: int) -> None:
            nonlocal held
            own = owner[name] = buffer or name
            users[own] = max(users.get(own, -1), last.get(name, -1))
            ending.setdefault(max(users[own], index), []).append(own)
            if buffer is None:
                alive[name] = self.bytes(name, float_bytes)
                held += alive[name]

        for value in self.graph.input:
            take(value.name, None, 0)
        for index, node in enumerate(self.graph.node):
            source = owner.get(node.input[0]) if node.input and node.input[0] else None
            for name in filter(None, node.output):
                if name in self.numbers:
                    continue
                shared = None
                if source is not None and node.op_type in ALIASES:
                    shared = source
                elif node.op_type in IN_PLACE:
                    shared = self._given_up(node, name, index, owner, users, alive, float_bytes)
                take(name, shared, index)
            work = self._scores(node) if scores else 0
            most = max(most, held + work * (float_bytes or 4))
            flops += self._flops(node)
            for buffer in ending.pop(index, ()):
                if users[buffer] <= index:
                    held -= alive.pop(buffer, 0)
        width = float_bytes or 0
        return Cost(flops, most, sum(self.weights.values()), end, width)

    def _given_up(
        self, node: onnx.NodeProto, name: str, index: int, owner: Mapping[str, str], users: Mapping[str, int],
        alive: Mapping[str, int], float_bytes: int | None,
    ) -> str | None:  # fmt: skip
        """Return the buffer of an input that has its last use here and the output's size."""
        for taken in filter(None, node.input):
            buffer = owner.get(taken)
            if buffer is None or buffer not in alive or users[buffer] != index:
                continue
            if alive[buffer] == self.bytes(name, float_bytes):
                return buffer
        return None

    def _attention(self, node: onnx.NodeProto) -> tuple[int, int, int, int, int] | None:
        """Return batch, heads, queries, keys and head size of an Attention, four-dimensional or three."""
        if node.op_type != "Attention":
            return None
        query, key = self.shape(node.input[0]), self.shape(node.input[1])
        if len(query) == 4:
            return query[0], query[1], query[2], key[2], query[3]
        heads = next(a.i for a in node.attribute if a.name == "q_num_heads")
        return query[0], heads, query[1], key[1], query[2] // heads

    def _scores(self, node: onnx.NodeProto) -> int:
        found = self._attention(node)
        return 0 if found is None else math.prod(found[:4])

    def _flops(self, node: onnx.NodeProto) -> int:
        attention = self._attention(node)
        if attention is not None:
            return 4 * math.prod(attention)
        if node.op_type in ("MatMul", "MatMulInteger"):
            return 2 * math.prod(self.shape(node.output[0])) * self.shape(node.input[0])[-1]
        if node.op_type == "Gemm":
            flags = {a.name: a.i for a in node.attribute}
            inner = self.shape(node.input[0])[0 if flags.get("transA") else 1]
            return 2 * math.prod(self.shape(node.output[0])) * inner
        if node.op_type == "Conv":
            return 2 * math.prod(self.shape(node.output[0])) * math.prod(self.shape(node.input[1])[1:])
        if node.op_type == "ConvTranspose":
            return 2 * math.prod(self.shape(node.input[0])) * math.prod(self.shape(node.input[1])[1:])
        return 0


def _known(kind: onnx.TypeProto) -> onnx.TypeProto:
    """Return a type with float16 for bfloat16, which is as wide: some schemas of an opset lack bfloat16."""
    if kind.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
        kind.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return kind
