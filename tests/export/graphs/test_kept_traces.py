"""The traces that tests keep are the traces that they would make again."""

import json

import onnx_ir as ir
import pytest

from segue.export.checkpoint import read
from segue.export.families import registry
from segue.export.graphs import trace
from support.traces import described_by, kept


@pytest.fixture(scope="module")
def graphs(tiny_checkpoint):
    return graphs_of(tiny_checkpoint)


def graphs_of(root):
    """Return the graphs of a checkpoint by their components."""
    family = registry.find(read.read_index(root))
    found = read.read(root, (*family.folders, *family.optional))
    return {g.component: g for g in family.graphs({name: part.config for name, part in found.parts.items()})}


def content(model: ir.Model):
    marks = [value.name for value in model.graph.inputs if value.meta.get(trace.BUFFER)]
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True), marks


@pytest.mark.slow
def test_a_kept_trace_is_the_one_that_was_made(graphs, tmp_path):
    graph, make = graphs["transformer"], getattr(trace.trace, "__wrapped__", trace.trace)
    found = kept(make, tmp_path)
    first, second = found(graph, "fp32"), found(graph, "fp32")
    assert len(list(tmp_path.glob("*.onnx"))) == 1
    assert content(first) == content(second) == content(make(graph, "fp32"))
    assert content(first)[1] == ["model.pos_embed.pos_embed"]


def test_graphs_that_differ_have_descriptions_that_differ(graphs):
    told = [json.dumps(described_by(graph)) for graph in graphs.values()]
    assert len(set(told)) == len(told)
    assert not any(" at 0x" in each for each in told)


def test_models_of_one_autoencoder_share_its_traces(video_checkpoint, wan_i2v_checkpoint, wan_ti2v_checkpoint):
    roots = (video_checkpoint, wan_i2v_checkpoint, wan_ti2v_checkpoint)
    both, single, image = ({name: described_by(g) for name, g in graphs_of(root).items()} for root in roots)
    for name in ("vae_encoder_first", "vae_decoder_first", "vae_decoder_next"):
        assert single[name] == both[name] != image[name] == both[f"detail_{name}"]
    assert single["transformer"] == single["transformer_2"] == both["transformer"] != image["transformer"]
