"""The child process of `parity.check`: a request as JSON on stdin, one comparison a line as JSON on stdout."""

from __future__ import annotations

import dataclasses
import gc
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.logger import G_LOGGER

from ...engines.json_child import answering
from ...runtime.bundle.manifest import Parity
from ...runtime.diagnostics.difference import difference
from ...runtime.planning import memory
from ..checkpoint import read
from ..checkpoint.single.open import plain_folder
from ..families.graph import Graph
from ..families.registry import find
from ..graphs import trace
from ..graphs.adapters import no_lora
from .fp32_twin import apply_patch, write_twin
from .parity import BASE_BYTES, BYTES_PER_PARAMETER, GATES, NO_MEMORY, TWIN


def main() -> None:
    """Answer the request on stdin with one line for each comparison."""
    request, tell = answering()
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    bundle = Path(request["bundle"])
    family = find(read.read_index(bundle))
    folders = [f for f in (*family.folders, *family.optional) if (bundle / f).is_dir()]
    configs = {f: read.read_json(bundle / f / "config.json", bundle) for f in folders}
    for graph in family.graphs(configs, request["takes"]):
        if graph.component not in request["components"]:
            continue
        kind, parameters, file = request["components"][graph.component]
        need = BASE_BYTES + parameters * BYTES_PER_PARAMETER[kind]
        if memory.available() < need:
            results = [Parity(graph.component, {}, None, None, None, NO_MEMORY)]
        else:
            with (
                tempfile.TemporaryDirectory(dir=request["scratch"]) as twin,
                plain_folder(bundle, request["single"], graph.folder, request["scratch"]) as folder,
            ):
                if kind == "bf16":
                    path = write_twin(graph, bundle, Path(twin), request["single"])
                    results = _compare(graph, bundle, folder, path, "float32", GATES[kind], TWIN)
                else:
                    results = _compare(graph, bundle, folder, bundle / file, trace.NUMPY[kind], GATES[kind], "")
        for result in results:
            tell(dataclasses.asdict(result))
        gc.collect()


def _compare(graph: Graph, bundle: Path, weights: Path, path: Path, dtype: str, gate: float, note: str) -> list[Parity]:
    """Compare at each trial; PyTorch's model is freed before ONNX Runtime's is loaded."""
    feeds = []
    for sizes in graph.trials:
        rng = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))
        # Both sides get numbers that the graph's dtype can hold.
        drawn = graph.feed(rng, sizes)
        weight_like = {p.name for p in graph.inputs if p.dtype == "weight"}
        feeds.append({k: v.astype(dtype) if k in weight_like else v for k, v in drawn.items()})
    with torch.inference_mode():
        loaded = graph.load(str(weights)).eval().float()
        apply_patch(loaded, graph, bundle / graph.folder)
        model = graph.wrap(loaded)
        expected = [_torch_outputs(model, graph, feed) for feed in feeds]
        del model, loaded
    gc.collect()
    with OnnxrtRunner(SessionFromOnnx(str(path), providers=["cpu"])) as runner:
        beside = no_lora(path)
        found = [{k: np.array(v) for k, v in runner.infer(feed | beside).items()} for feed in feeds]
    made = []
    for feed, want, have in zip(feeds, expected, found, strict=True):
        far, shapes = difference(want, have), {name: array.shape for name, array in feed.items()}
        made.append(Parity(graph.component, shapes, far.relative_l2, far.maximum, gate, note))
    return made


def _torch_outputs(model: torch.nn.Module, graph: Graph, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arguments = [torch.from_numpy(v.astype(np.float32) if v.dtype.kind == "f" else v) for v in feed.values()]
    outputs = model(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {port.name: value.contiguous().numpy() for port, value in zip(graph.outputs, outputs, strict=True)}


if __name__ == "__main__":
    main()
