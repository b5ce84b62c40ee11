"""Point the weights of a traced graph into safetensors files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...errors import CheckpointError
from ..checkpoint.headers import Tensor
from ..families.graph import Graph, Port

PREFIX = "model."  # the wrapper's attribute that holds the model
BUFFER = "buffer"
STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
ONNX = {
    "F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16, "F64": ir.DataType.DOUBLE,
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """The targets of a graph's initialisers: files relative to the bundle, and the tensors used.

    `parameters` counts the elements of learned tensors, without buffers such as the positional table. `buffers` is the
    file that was added for buffers that the checkpoint lacks, if any. `added` are the inputs for a LoRA, and `names` is
    the file with the modules that take one (`adapters.write_names`). `bytes` is what the initialisers read.
    """

    files: tuple[str, ...]
    tensors: frozenset[str]
    parameters: int
    buffers: str | None = None
    added: tuple[Port, ...] = ()
    names: str | None = None
    bytes: int = 0


def attach(model: ir.Model, tensors: Mapping[str, Tensor], graph: Graph, kind: str, at_root: bool = False) -> Written:
    """Turn the weights of a traced `model` into initialisers that point at `tensors`, by file, offset and length.

    A floating tensor that is stored in another precision than `kind` is cast where it is used first. Raises
    CheckpointError if a stored tensor has another shape than the model, or a dtype that no cast reads.
    """
    used = {}
    parameters = 0
    order = {node: place for place, node in enumerate(model.graph)}
    for name, value in weights_of(model).items():
        tensor = tensors[name]
        shape = tuple(d for d in value.shape or () if isinstance(d, int))
        floating = value.dtype is not None and value.dtype.is_floating_point()
        if tensor.shape != shape or (floating and tensor.dtype not in ONNX):
            raise CheckpointError(
                f"{tensor.file} holds {name!r} as {tensor.dtype} {list(tensor.shape)}; {graph.folder}/config.json "
                f"makes a model with {STORED[kind]} {list(shape)}. The two do not belong together. Fetch them again."
            )
        assert value.dtype is not None
        model.graph.inputs.remove(value)
        dtype = ONNX[tensor.dtype] if floating else value.dtype
        if dtype != value.dtype:
            value = _before_cast(model.graph, value, dtype, order)
        value.const_value = ir.ExternalTensor(
            tensor.file if at_root else Path(tensor.file).name, tensor.offset, tensor.length, dtype,
            shape=ir.Shape(shape), name=PREFIX + name,
        )  # fmt: skip
        model.graph.register_initializer(value)
        used[name] = tensor
        parameters += 0 if value.meta.get(BUFFER) else math.prod(shape)
    names = frozenset(used) | {graph.alias(name) for name in used}
    size = sum(tensor.length for tensor in used.values())
    return Written(tuple(sorted({t.file for t in used.values()})), names, parameters, bytes=size)


def _before_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, order: Mapping[ir.Node, int]) -> ir.Value:
    """Return a new value of `dtype` whose cast replaces `value`. The cast stands before its first use, for `cut`."""
    users = [use.node for use in value.uses()]
    first = min((node for node in users if node in order), key=order.__getitem__, default=graph[0])
    if any(node not in order for node in users):  # inside the body of a loop or a branch
        first = graph[0]
    stored = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(dtype))
    cast = ir.node("Cast", [stored], attributes={"to": value.dtype})
    cast.outputs[0].name, cast.outputs[0].meta[BUFFER] = f"{value.name}.cast", False
    graph.insert_before(first, cast)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    stored.meta[BUFFER] = value.meta.get(BUFFER)
    return stored


def weights_of(model: ir.Model) -> dict[str, ir.Value]:
    """Return the weights of a traced `model` by their names in a checkpoint; they are still inputs of its graph."""
    return {v.name.removeprefix(PREFIX): v for v in model.graph.inputs if v.name and v.name.startswith(PREFIX)}
