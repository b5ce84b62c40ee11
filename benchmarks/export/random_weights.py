"""Components in their published configurations with random weights in fp16, for benchmarks at full size."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segue.export.checkpoint import headers
from segue.export.families.graph import Graph
from segue.export.families.registry import named
from segue.export.graphs import trace
from segue.export.graphs.attach import STORED

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

KIND = "fp16"


def graphs_of(name: str) -> list[Graph]:
    """Return the graphs of "MODEL/FOLDER" (for example "sd3/transformer") that have weights."""
    model, folder = name.split("/")
    family, configs = common.full_size(model)
    graphs = named(family).graphs(configs)
    return [graph for graph in graphs if graph.folder == folder and not graph.component.endswith("_step")]


def shapes_of(graphs: Sequence[Graph], kind: str = KIND) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of graphs that share a folder, by their names in a checkpoint."""
    return {
        name: tuple(int(d) for d in value.shape)
        for graph in graphs
        for value in trace.trace(graph, kind).graph.inputs
        if value.name.startswith(trace.PREFIX) and graph.buffer(name := value.name.removeprefix(trace.PREFIX)) is None
    }


def parameters(graphs: Sequence[Graph]) -> int:
    """Return the number of weights of the graphs' models, without a trace, which can take minutes.

    The graphs may hold fewer: LongCat-Image's text encoder has 1.2 B that its graph leaves out.
    """
    found: dict[str, int] = {}
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        for graph in graphs:
            found |= {name: array.numel() for name, array in graph.wrap(graph.build()).named_parameters()}
    return sum(found.values())


def write(graphs: Sequence[Graph], directory: Path, kind: str = KIND) -> list[Path]:
    """Write graphs that share a folder, and their weights, below `directory`; return the paths of the graphs.

    `kind` is fp16 or fp32. Matrices are normal with a deviation of 0.02. Scales are near one, so that activations stay
    finite.
    """
    folder = directory / graphs[0].folder
    folder.mkdir(parents=True)
    shapes = shapes_of(graphs, kind)
    file = folder / "model.safetensors"
    dtype = np.dtype(trace.NUMPY[kind])
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(headers.encode([(n, STORED[kind], s, dtype.itemsize * math.prod(s)) for n, s in shapes.items()]))
        for name, shape in shapes.items():
            array = 0.02 * rng.standard_normal(shape, dtype=np.float32)
            out.write((array + (len(shape) == 1 and name.endswith("weight"))).astype(dtype).tobytes())
    tensors = headers.read(file, f"{graphs[0].folder}/model.safetensors")
    for graph in graphs:
        trace.write(graph, kind, tensors, folder / graph.file)
    return [folder / graph.file for graph in graphs]
