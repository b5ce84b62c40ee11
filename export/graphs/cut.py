"""Cut a graph into parts that run in sequence, so that only one part's weights are in memory at a time.

Few values besides the hidden states cross between the blocks of a transformer. Each part is as large as allowed and
ends where the fewest values cross, whatever the architecture calls its blocks.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from ...runtime.bundle.manifest import Manifest, Part
from ...runtime.bundle.shapes import default_range, dimensions, sized
from .cost import Walk

NESTED = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
UNSURE = 1000  # the weight of a value if a part could not tell whether to round it


def cut(graph: Path, sizes: Mapping[str, int], most: int) -> tuple[Part, ...]:
    """Write the graph at `graph` as parts of at most `most` bytes of weights beside it, and return them in order.

    If a single node has more, its part has more, too. `sizes` are any valid sizes of its free dimensions. Returns ()
    and writes nothing if one part would be the whole graph, or if nodes contain graphs. The manifest names a part's
    file like the graph, relative to the bundle. Raises CheckpointError if a shape cannot be inferred.
    """
    model = ir.load(graph)
    nodes, weights = list(model.graph), _weights(model.graph)
    nested = any(attribute.type in NESTED for node in nodes for attribute in node.attributes.values())
    borders = [] if nested or model.functions else _borders(nodes, weights, most)
    if not borders:
        return ()
    _type(model.graph, Walk(onnx.load(graph, load_external_data=False), sizes, graph))
    crossing = [_crossing(nodes, border) for border in borders]
    made, names = [], [f"{graph.stem}_part_{number}.onnx" for number in range(len(borders) + 1)]
    for number, name in enumerate(names):
        lower = {*model.graph.inputs, *(crossing[number - 1] if number else ())}
        upper = crossing[number] if number < len(crossing) else list(model.graph.outputs)
        part = _part(model, nodes, [0, *borders, len(nodes)][number : number + 2], lower, upper)
        ir.save(part, graph.with_name(name))
        taken, own = tuple(value.name or "" for value in part.graph.inputs), _weights(part.graph)
        made.append(Part(f"{graph.parent.name}/{name}", taken, sum(own.values()), 0, 0))
    return tuple(made)


def parts_of(root: Path, content: Manifest, component: str, most: int) -> tuple[Part, ...]:
    """Cut the graph of a component of the new bundle at `root`; see `cut`."""
    spec = content.components[component]
    dims = {base: three[0] for base, three in dimensions(content, component, default_range(content)).items()}
    free = {size for port in spec.inputs for size in port.shape if isinstance(size, str)}
    made = cut(root / spec.graph, {size: sized(size, dims, component) for size in free}, most)
    if "/" in spec.graph:
        return made
    return tuple(replace(part, graph=Path(part.graph).name) for part in made)  # the graph lies at the bundle's root


def _weights(graph: ir.Graph) -> dict[str, int]:
    """Return the bytes of each initializer in a file."""
    stored = graph.initializers.items()
    return {name: v.const_value.nbytes for name, v in stored if isinstance(v.const_value, ir.ExternalTensor)}


def _type(graph: ir.Graph, walk: Walk) -> None:
    """Set dtype and number of dimensions of the inner values, which inputs of parts need."""
    for node in graph:
        for value in node.outputs:
            found = walk.types.get(value.name or "")
            if found is not None and value.type is None:
                value.dtype = ir.DataType(found.tensor_type.elem_type)
                value.shape = ir.Shape([None] * len(found.tensor_type.shape.dim))


def _borders(nodes: Sequence[ir.Node], weights: Mapping[str, int], most: int) -> list[int]:
    """Return the places in `nodes` to cut before: narrow ones, for parts of nearly `most` bytes."""
    seen: set[str] = set()
    sums = [0]  # bytes of weights before each place
    for node in nodes:
        new = {v.name for v in node.inputs if v is not None and v.name in weights} - seen
        seen |= {name for name in new if name}
        sums.append(sums[-1] + sum(weights[name] for name in new if name))
    widths, borders, begin = _widths(nodes), [], 0
    while sums[-1] - sums[begin] > most:
        window = range(bisect_left(sums, sums[begin] + most / 2), bisect_right(sums, sums[begin] + most))
        place = min(window, key=lambda place: (widths[place], -place), default=window.stop - 1)
        place = place if place > begin else window.start  # a single node has more than `most`
        if place >= len(nodes):
            break
        borders.append(begin := place)
    return borders


def _widths(nodes: Sequence[ir.Node]) -> list[int]:
    """Return how many values cross before each node. A value counts as `UNSURE` if only some of its uses round it."""
    changes = [0] * (len(nodes) + 1)
    places = {node: place for place, node in enumerate(nodes)}
    for place, node in enumerate(nodes):
        for value in node.outputs:
            last = _last_use(value, places, len(nodes))
            if last > place:
                weight = UNSURE if _is_narrowed(value) and not _is_rounded(value) else 1
                changes[place + 1] += weight
                changes[min(last + 1, len(nodes))] -= weight
    return list(itertools.accumulate(changes))


def _last_use(value: ir.Value, places: Mapping[ir.Node, int], end: int) -> int:
    if value.is_graph_output():
        return end
    return max((places[use.node] for use in value.uses()), default=-1)


def _crossing(nodes: Sequence[ir.Node], border: int) -> list[ir.Value]:
    """Return the values made before `border` and used from it on, outputs of the graph included."""
    later = {value for node in nodes[border:] for value in node.inputs if value is not None}
    made = [value for node in nodes[:border] for value in node.outputs]
    return [value for value in made if value in later or value.is_graph_output()]


def _part(
    model: ir.Model, nodes: Sequence[ir.Node], between: Sequence[int], lower: set[ir.Value], upper: Sequence[ir.Value]
) -> ir.Model:
    """Return the nodes between two places as a model. The caller keeps the values that only pass by."""
    inside = nodes[slice(*between)]
    made = {value for node in inside for value in node.outputs}
    used = {value for node in inside for value in node.inputs if value is not None}
    inputs = [value for value in [*model.graph.inputs, *_ordered(lower, nodes)] if value in used]
    graph = ir.convenience.extract(model.graph, inputs, [value for value in upper if value in made])
    for name in sorted(graph.initializers):  # a set gave their order
        graph.initializers[name] = graph.initializers.pop(name)
    kept = [*model.graph.inputs, *model.graph.outputs, *filter(_is_rounded, (*lower, *upper))]
    _widen(graph, {value.name for value in kept})
    return ir.Model(graph, ir_version=model.ir_version, producer_name=model.producer_name or "segue")


def _is_narrowed(value: ir.Value) -> bool:
    """Return whether the graph itself makes a value narrow."""
    maker = value.producer()
    return maker is not None and maker.op_type == "Cast" and maker.attributes["to"].as_int() in NARROW


def _is_rounded(value: ir.Value) -> bool:
    """Return whether the graph itself narrows a value and widens it again, which ONNX Runtime keeps.

    For other uses ONNX Runtime inserts its own widening, and removes both casts.
    """
    return _is_narrowed(value) and all(use.node.op_type == "Cast" for use in value.uses())


def _widen(graph: ir.Graph, own: set[str | None]) -> None:
    """Let halves cross between parts as float32, except `own`, whose dtype does not change.

    ONNX Runtime's CPU computes most operators on halves in float32, and removes the narrowing between two such
    operators, with the operators in between. A part must round where the whole graph rounds. So a crossing value is
    negated on both sides (Neg is such an operator), widened, and given another axis, because ONNX Runtime removes
    nothing right before an output.
    """
    axes = ir.Value(name="part_axes", const_value=ir.tensor([0], name="part_axes"))
    axes.dtype = ir.DataType.INT64
    for i, value in enumerate(graph.inputs):
        if value.dtype in NARROW and value.name not in own:
            given = ir.Value(name=value.name, type=ir.TensorType(ir.DataType.FLOAT), shape=_deeper(value))
            nodes = _chain(given, value.name, ("Squeeze", axes), ("Cast", value.dtype), ("Neg", None))
            graph.insert_before(graph[0], nodes)
            ir.convenience.replace_all_uses_with(value, nodes[-1].outputs[0])
            nodes[-1].outputs[0].name = f"{value.name}_narrow"
            graph.inputs[i] = given
    for i, value in enumerate(graph.outputs):
        if value.dtype in NARROW and value.name not in own:
            nodes = _chain(value, value.name, ("Neg", None), ("Cast", ir.DataType.FLOAT), ("Unsqueeze", axes))
            graph.extend(nodes)
            given = nodes[-1].outputs[0]
            given.name, value.name = value.name, f"{value.name}_narrow"
            given.dtype, given.shape = ir.DataType.FLOAT, _deeper(value)
            graph.outputs[i] = given
    if axes.uses():
        graph.register_initializer(axes)


def _chain(value: ir.Value, name: str | None, *steps: tuple[str, ir.Value | ir.DataType | None]) -> list[ir.Node]:
    """Return a chain of nodes on `value`, each with a second input or, for a Cast, the target dtype."""
    nodes = []
    for number, (operator, how) in enumerate(steps):
        cast = {"to": how.value} if isinstance(how, ir.DataType) else {}
        inputs = [value, how] if isinstance(how, ir.Value) else [value]
        nodes.append(ir.node(operator, inputs, attributes=cast))
        value = nodes[-1].outputs[0]
        value.name = f"{name}_crossing_{number}"
    return nodes


def _deeper(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    return ir.Shape([1, *value.shape])


def _ordered(values: set[ir.Value], nodes: Sequence[ir.Node]) -> list[ir.Value]:
    return [value for node in nodes for value in node.outputs if value in values]
