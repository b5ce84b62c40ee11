"""A component of a bundle once more in float32, for what ONNX Runtime's CPU cannot do in its own precision."""

from __future__ import annotations

from pathlib import Path

from . import checkpoint, headers, precision, trace
from .families.graph import Graph


def write_twin(graph: Graph, bundle: Path, scratch: Path) -> Path:
    """Export the component again in float32 under `scratch`, weights included, and return its graph."""
    part = checkpoint.read_part(bundle, graph.folder)
    (scratch / graph.folder).mkdir(exist_ok=True)
    tensors: dict[str, headers.Tensor] = {}
    for file in part.weights:
        precision.convert(bundle / file, scratch / file, "fp32")
        tensors.update(headers.read(scratch / file, file))
    path = scratch / graph.folder / graph.file
    trace.write(graph, "fp32", tensors, path)
    return path
