"""Trace a graph without its weights, and point its initialisers into safetensors files.

The model is built under FakeTensorMode: every tensor has a shape and a dtype but no memory. During simplification the
weights are graph inputs, so that no rule can read a weight or fold it into a constant. Otherwise onnxscript's optimiser
would transpose weights into the graph, and open the weight files to look for zero biases.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common

from ...errors import CheckpointError
from ..checkpoint import convert, headers
from ..checkpoint.headers import Tensor
from ..families.graph import WEIGHT, Graph
from .adapters import adapt, takes_lora, write_names
from .attach import BUFFER, PREFIX, Written, attach, weights_of

SMALL = 4096  # bytes up to which a constant may be folded
TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NUMPY = {"fp32": "float32", "fp16": "float16", "bf16": "float32"}  # of inputs and outputs: numpy has no bf16
Free = dict[int, Any]  # the free dimensions of one input


def trace(graph: Graph, kind: str) -> ir.Model:
    """Return `graph` as an ONNX model in `kind` (fp32, fp16, bf16); its weights are trailing inputs, `model.NAME`.

    No weight is made or read. Raises CheckpointError if the model's class does not accept the config.
    """
    dtype = TORCH[kind]
    with _quiet(), torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        try:
            model = graph.build().eval()
        except Exception as error:  # a config can fail anywhere in the class
            raise CheckpointError(
                f"The config of {graph.folder} does not make a model ({type(error).__name__}: {error}). "
                "Save the checkpoint again with the diffusers version that Segue names in its [export] extra."
            ) from None
        _retype(model, dtype)
        wrapped = graph.wrap(model)
        buffers = {name for name, _ in wrapped.named_buffers()}
        arguments = tuple(
            torch.empty(p.sized(graph.traced), dtype=getattr(torch, NUMPY[kind] if p.dtype == WEIGHT else p.dtype))
            for p in graph.inputs
        )
        _border(wrapped, graph, dtype)
        free = tuple(
            {i: torch.export.Dim.DYNAMIC for i, d in enumerate(p.shape) if isinstance(d, str)} for p in graph.inputs
        )
        program = torch.export.export(wrapped, arguments, strict=False, dynamic_shapes=_as_taken(wrapped, free))
        result = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=graph.opset,
            optimize=False,  # torch would run the optimiser on fake weights and fail
            input_names=[p.name for p in graph.inputs],
            output_names=[p.name for p in graph.outputs],
            verbose=False,
        )
        assert result is not None
        traced = result.model
    del program, result, model, wrapped
    _weights_to_inputs(traced, graph)
    gc.collect()
    _simplify(traced)
    _sign(traced, graph)
    for value in traced.graph.inputs:
        value.meta[BUFFER] = value.name in buffers  # for attach; not written to the file
    return traced


def write(
    graph: Graph, kind: str, tensors: dict[str, Tensor], path: Path, at_root: bool = False, rank: int = 0
) -> Written:
    """Trace `graph` in `kind` (fp32, fp16, bf16) and write it to `path`, its initialisers pointing at `tensors`.

    The graph lies in its component's folder, or with `at_root` at the root of the bundle, above all of `tensors`.
    Buffers that no file holds go into a safetensors file beside it. With a `rank` a denoiser takes LoRA files
    (`adapt`). Raises CheckpointError as trace and attach do, and for a weight that is in no file; UsageError for a rank
    that is too large.
    """
    model = trace(graph, kind)
    added = adapt(model, rank) if rank and takes_lora(graph) else ()
    tensors = tensors | {
        name: tensors[graph.alias(name)]
        for name in weights_of(model)
        if name not in tensors and graph.alias(name) in tensors
    }
    computed = {n: graph.buffer(n) for n in weights_of(model) if n not in tensors}
    absent = [n for n, value in computed.items() if value is None]
    if absent:
        raise CheckpointError(
            f"{graph.folder} needs the tensor {absent[0]!r}, and none of its files has it. The weights and "
            "config.json do not belong together, or a shard is missing. Fetch the checkpoint again."
        )
    buffers = None
    if computed:
        stem = path.stem.replace("model", "")
        buffers = f"{graph.folder}/{stem + '_' if stem else ''}buffers.safetensors"
        target = path.parent / (buffers if at_root else Path(buffers).name)
        convert.write(target, {n: v for n, v in computed.items() if v is not None}, kind)
        tensors = {**tensors, **headers.read(target, buffers)}
    written = attach(model, tensors, graph, kind, at_root)
    ir.save(model, path)
    names = write_names(path, graph, tensors, added, at_root) if added else None
    return dataclasses.replace(written, buffers=buffers, added=added, names=names)


def _as_taken(module: torch.nn.Module, free: tuple[Free, ...]) -> tuple[Free | tuple[Free, ...], ...]:
    """Return the free dimensions of positional arguments for torch.export, with those of `*args` as one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    plain = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(free)
    return (*free[:plain], free[plain:]) if plain < len(free) else free


def _retype(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter and floating buffer of a fake `model` this dtype; Module.to cannot swap fake parameters."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape, dtype=dtype), False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = torch.empty(buffer.shape, dtype=dtype)


def _border(module: torch.nn.Module, graph: Graph, dtype: torch.dtype) -> None:
    """Give a bf16 module float32 inputs and outputs, because numpy has no bf16."""
    if dtype != torch.bfloat16:
        return
    inner = [port.dtype == WEIGHT for port in graph.inputs]

    def before(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(a.to(dtype) if narrow else a for a, narrow in zip(arguments, inner, strict=True))

    def after(_: torch.nn.Module, arguments: Any, outputs: Any) -> Any:
        return tuple(o.float() for o in outputs) if isinstance(outputs, tuple) else outputs.float()

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _weights_to_inputs(model: ir.Model, graph: Graph) -> None:
    for value in list(model.graph.initializers.values()):
        if isinstance(getattr(value.const_value, "raw", None), torch._subclasses.FakeTensor):
            if not (value.name or "").startswith(PREFIX):
                raise CheckpointError(
                    f"Tracing {graph.component} made the constant {value.name!r} without a value. This model is not "
                    "supported; report it with its config.json."
                )
            assert value.const_value is not None
            value.shape, value.dtype = value.const_value.shape, value.const_value.dtype  # type: ignore[assignment]
            del model.graph.initializers[value.name]  # type: ignore[arg-type]
            value.const_value = None
            model.graph.inputs.append(value)


def _simplify(model: ir.Model) -> None:
    """Fold constants, drop operators without effect, share equal values.

    onnxscript.optimizer.optimize_ir makes nearly the same graph with 50 rewrite rules. For SD3-Medium's 7,000 nodes it
    took 25 s, compared with 1 s here (see docs/design/export.md).
    """
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    common.InlinePass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    for _ in range(2):
        fold_constants(model, input_size_limit=SMALL, output_size_limit=SMALL)
        common.RemoveUnusedNodesPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
        RewritePass([rules.collapse_slice_rule, rules.collapse_slice2_rule, rules.no_op_cast_rule])(model)
        common.IdentityEliminationPass()(model)
    _split_plainly(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=2**20)(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.OutputFixPass()(model)


def _split_plainly(model: ir.Model) -> None:
    """Replace a SplitToSequence whose elements are all taken by number by a Split: engines have no sequences."""
    for node in list(model.graph.all_nodes()):
        if node.op_type != "SplitToSequence":
            continue
        sizes, taken = node.inputs[1], [use.node for use in node.outputs[0].uses()]
        places = [place for n in taken if n.op_type == "SequenceAt" and (place := _number(n.inputs[1])) is not None]
        count = _length(sizes)
        if len(places) < len(taken) or count is None:
            continue
        split = ir.node(
            "Split", [node.inputs[0], sizes], attributes={"axis": node.attributes["axis"]}, num_outputs=count
        )
        assert node.graph is not None
        node.graph.insert_before(node, split)
        for number, output in enumerate(split.outputs):
            output.name = f"{node.outputs[0].name}_{number}"
        for element, place in zip(taken, places, strict=True):
            ir.convenience.replace_all_uses_with(element.outputs[0], split.outputs[place])
            node.graph.remove(element, safe=True)
        node.graph.remove(node, safe=True)


def _number(value: ir.Value | None) -> int | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else int(tensor.numpy().item())


def _length(sizes: ir.Value | None) -> int | None:
    """Return the length of a vector: from its shape, or by the inputs of its Concat (torch joins single numbers)."""
    if sizes is None:
        return None
    if sizes.shape is not None and isinstance(sizes.shape[0], int):
        return sizes.shape[0]
    made = sizes.producer()
    return len(made.inputs) if made is not None and made.op_type == "Concat" else None


def _sign(model: ir.Model, graph: Graph) -> None:
    """Name the model and its free dimensions; drop unused weights and the shapes of inner values."""
    model.producer_name, model.producer_version = "segue", ""
    model.graph.name = graph.component
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in outputs:
                value.shape = value.type = None
    for value in list(model.graph.inputs):
        if (value.name or "").startswith(PREFIX) and not value.uses():
            model.graph.inputs.remove(value)
    for port, value in [
        *zip(graph.inputs, model.graph.inputs, strict=False),
        *zip(graph.outputs, model.graph.outputs, strict=True),
    ]:
        if value.name != port.name:
            raise RuntimeError(f"{graph.component}: expected {port.name!r} in the traced graph, found {value.name!r}")
        value.shape = ir.Shape(port.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of torch, transformers and diffusers during a trace."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
