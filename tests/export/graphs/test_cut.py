import shutil
from pathlib import Path

import numpy as np
import pytest

from segue.engines.ort.engine import OrtEngine
from segue.engines.streamed import StreamedEngine, StreamedPart
from segue.export.graphs.cut import cut
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.bundle.shapes import default_range, dimensions, sized


def of_transformer(bundle: Path, tmp_path: Path):
    """Return a copy of a bundle's transformer, its entry, and sizes and random feeds for it."""
    content = read_manifest(bundle)
    spec, folder = content.components["transformer"], tmp_path / "transformer"
    shutil.copytree(bundle / "transformer", folder)
    dims = {name: three[1] for name, three in dimensions(content, "transformer", default_range(content)).items()}
    free = {size for port in spec.inputs for size in port.shape if isinstance(size, str)}
    sizes = {name: sized(name, dims, "transformer") for name in free}
    random = np.random.default_rng(0)
    feeds = {
        port.name: random.standard_normal([sizes.get(size, size) for size in port.shape]).astype(port.dtype)
        for port in spec.inputs
    }
    return folder / "model.onnx", spec, sizes, feeds


@pytest.mark.parametrize("kind", ["exported", "half"])
@pytest.mark.parametrize("share", [2, 5])
def test_parts_one_after_another_give_what_the_whole_graph_gives_bit_for_bit(kind, share, request, tmp_path):
    graph, spec, sizes, feeds = of_transformer(request.getfixturevalue(kind), tmp_path)
    width = 2 if kind == "half" else 4
    parts = cut(graph, sizes, width * spec.parameters // share)
    assert len(parts) >= share
    stored = sum((tmp_path / file).stat().st_size for file in spec.weights)
    assert sum(part.bytes for part in parts) <= stored, "weights in many parts"
    opened = [
        StreamedPart(lambda part=part: OrtEngine(tmp_path / part.graph, threads=1), part.inputs) for part in parts
    ]
    with (
        StreamedEngine(opened, spec.inputs, spec.outputs, "it", ahead=True) as streamed,
        OrtEngine(graph, threads=1) as whole,
    ):
        assert np.array_equal(streamed.run(feeds)["velocity"], whole.run(feeds)["velocity"])


def test_the_same_graph_is_cut_into_the_same_bytes(half, tmp_path):
    graph, spec, sizes, _ = of_transformer(half, tmp_path)
    once, again = ([(tmp_path / p.graph).read_bytes() for p in cut(graph, sizes, spec.parameters)] for _ in "12")
    assert once == again


def test_cuts_are_where_little_crosses(exported, tmp_path):
    graph, spec, sizes, _ = of_transformer(exported, tmp_path)
    parts = cut(graph, sizes, spec.parameters)
    ports = {port.name for port in spec.inputs}
    assert all(part.bytes <= spec.parameters for part in parts[1:])
    assert max(len(set(part.inputs) - ports) for part in parts) <= 9


def test_what_fits_into_one_part_is_left_whole(exported, tmp_path):
    graph, spec, sizes, _ = of_transformer(exported, tmp_path)
    before = sorted(path.name for path in graph.parent.iterdir())
    assert cut(graph, sizes, 4 * spec.parameters + 2**20) == ()
    assert sorted(path.name for path in graph.parent.iterdir()) == before
