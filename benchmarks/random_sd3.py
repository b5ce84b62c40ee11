"""SD3-Medium's transformer in the published configuration with random fp16 weights: for benchmarks at full size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from segue.export import headers, trace
from segue.export.families import sd3
from segue.export.families.graph import Graph

CONFIGS = Path(__file__).parent / "configs/full_size.json"


def write(directory: Path) -> tuple[Graph, Path]:
    """Write weights (4.2 GB) and graph under `directory`/transformer; return the graph and where it lies."""
    graph = sd3.transformer(json.loads(CONFIGS.read_text())["sd3"]["transformer"])
    (directory / "transformer").mkdir()
    model = trace.trace(graph, "fp16")
    shapes = {
        v.name.removeprefix(trace.PREFIX): tuple(int(d) for d in v.shape)
        for v in model.graph.inputs
        if v.name.startswith(trace.PREFIX)
    }
    shapes = {name: shape for name, shape in shapes.items() if graph.buffer(name) is None}
    file = directory / "transformer/model.safetensors"
    head = headers.encode([(n, "F16", s, 2 * math.prod(s)) for n, s in shapes.items()])
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(head)
        for shape in shapes.values():
            out.write((0.02 * rng.standard_normal(shape, dtype=np.float32)).astype(np.float16).tobytes())
    path = directory / "transformer/model.onnx"
    trace.write(graph, "fp16", headers.read(file, "transformer/model.safetensors"), path)
    return graph, path
