"""Find the parts of a checkpoint that overflow half precision, before they are converted to it.

A child process runs each part once in float16 with PyTorch, on the inputs of its parity check. If a layer gives
infinity or NaN, the part stays in float32. Other inputs may reach further: a part that passes is not proven to fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engines.json_child import answering
from ...runtime.planning import memory
from ..checkpoint import read
from ..checkpoint.single.open import plain_folder
from ..families.graph import Graph
from ..families.registry import find
from .child import run_check
from .parity import BASE_BYTES

BYTES_PER_PARAMETER = 8  # in float32 as loaded, in float16 beside it, and room


def overflowing(source: Path, parameters: Mapping[str, int], single: str = "") -> tuple[dict[str, str], set[str]]:
    """Return the folders of the checkpoint `source` that overflow float16, with reasons, and the unchecked folders.

    `parameters` has the number of weights of each folder to check. A folder that does not fit into memory stays
    unchecked. `single` is the checkpoint's single file, if it has one. Raises ParityError if the check itself fails.
    """
    found: dict[str, str] = {}
    left = set(parameters)

    def keep(result: dict[str, Any]) -> None:
        left.discard(result["folder"])
        if result["layer"]:
            found.setdefault(result["folder"], f"{result['layer']} gives values beyond float16's range")

    if parameters:
        request = {"source": str(source), "parameters": dict(parameters), "single": single}
        run_check("fp16_overflow", request, keep)
    return found, left


def main() -> None:
    """Answer the request on stdin with one line for each graph."""
    request, tell = answering()
    source = Path(request["source"])
    family = find(read.read_index(source))
    folders = [f for f in (*family.folders, *family.optional) if (source / f).is_dir()]
    configs = {f: read.read_json(source / f / "config.json", source) for f in folders}
    for graph in family.graphs(configs):
        parameters = request["parameters"].get(graph.folder, 0)
        if not graph.weighted or not parameters:
            continue
        if memory.available() >= BASE_BYTES + parameters * BYTES_PER_PARAMETER:
            with plain_folder(source, request["single"], graph.folder) as folder:
                tell({"folder": graph.folder, "layer": first_overflow(graph, folder)})


def first_overflow(graph: Graph, folder: Path) -> str:
    """Return the name of the first layer that gives infinity or NaN in float16; empty if none does."""
    model = graph.narrow(graph.load(str(folder)).eval())
    wrong: list[str] = []
    for name, module in model.named_modules():

        def look(_: torch.nn.Module, given: Any, made: Any, name: str = name or "it") -> None:
            tensors = made if isinstance(made, Sequence) else [made]
            if not all(t.isfinite().all() for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()):
                wrong.append(name)

        module.register_forward_hook(look)
    half = {port.name for port in graph.inputs if port.dtype == "weight"}
    feed = graph.feed(np.random.default_rng(0), graph.trials[0])
    arguments = [torch.from_numpy(a.astype(np.float16) if name in half else a) for name, a in feed.items()]
    with torch.inference_mode():
        graph.wrap(model)(*arguments)
    return wrong[0] if wrong else ""


if __name__ == "__main__":
    main()
