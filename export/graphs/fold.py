"""Changes to the constants of a graph whose weights are in memory."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def fold_transposes(model: ir.Model) -> None:
    """Replace weights that the graph transposes by transposed weights, because the quantizer looks for constants."""
    graph = model.graph
    for node in list(graph):
        value = node.inputs[0] if node.op_type == "Transpose" else None
        if value is None or value.const_value is None or not value.is_initializer():
            continue
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        array = np.ascontiguousarray(value.const_value.numpy().transpose(order))
        folded = ir.Value(name=f"{node.outputs[0].name}_folded", const_value=ir.tensor(array))
        folded.shape, folded.dtype = ir.Shape(array.shape), value.const_value.dtype
        graph.register_initializer(folded)
        ir.convenience.replace_all_uses_with(node.outputs[0], folded)
        graph.remove(node, safe=True)
        if not value.uses():
            del graph.initializers[str(value.name)]
