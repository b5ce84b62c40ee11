"""What a graph costs, against sums by hand and against PyTorch's own counter."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from segue.errors import CheckpointError
from segue.export.families.sd3 import graphs
from segue.export.graphs.cost import cost

SIZES = {"batch": 2, "height": 8, "width": 12, "text": 9, "length": 9}


def graph(tmp_path, nodes, inputs, outputs, initializers=(), dtype=TensorProto.FLOAT):
    values = [[helper.make_tensor_value_info(n, dtype, s) for n, s in ends.items()] for ends in (inputs, outputs)]
    made = helper.make_graph(nodes, "g", *values, list(initializers))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def weight(name, *shape):
    return onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)


def test_a_chain_holds_two_values_at_a_time(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["k"]),
        helper.make_node("MatMul", ["k", "a"], ["y"]),
    ]  # fmt: skip
    path = graph(tmp_path, nodes, {"x": ["n", 4]}, {"y": ["n", 8]}, [weight("a", 4, 8), weight("b", 8, 4)])
    found = cost(path, {"n": 10})
    assert found.flops == 3 * 2 * 10 * 4 * 8
    assert found.activations == 10 * (4 + 8) * 4
    assert found.weights == 2 * 32 * 4
    assert cost(path, {"n": 10}, float_bytes=2).activations == 10 * 12 * 2


def test_elementwise_operators_work_in_place_and_reshapes_move_nothing(tmp_path):
    shape = onnx.numpy_helper.from_array(np.array([-1], np.int64), "shape")
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Reshape", ["h", "shape"], ["k"]),
        helper.make_node("Neg", ["k"], ["y"]),
    ]  # fmt: skip
    path = graph(tmp_path, nodes, {"x": ["n", 4]}, {"y": ["m"]}, [shape])
    assert cost(path, {"n": 10}).activations == 10 * 4 * 4


def test_a_value_that_is_used_again_stays(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "a"], ["k"]),
        helper.make_node("Add", ["k", "x"], ["y"]),
    ]  # fmt: skip
    path = graph(tmp_path, nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, [weight("a", 4, 4)])
    assert cost(path, {"n": 10}).activations == 3 * 10 * 4 * 4


def test_attention_holds_its_scores_where_they_are_made(tmp_path):
    nodes = [
        helper.make_node("Neg", ["x"], ["k"]), helper.make_node("Abs", ["x"], ["v"]),
        helper.make_node("Attention", ["x", "k", "v"], ["y"]),
    ]  # fmt: skip
    path = graph(tmp_path, nodes, {"x": [1, 2, "n", 16]}, {"y": [1, 2, "n", 16]})
    fused, whole = (cost(path, {"n": 10}, scores=scores) for scores in (False, True))
    assert fused.flops == whole.flops == 4 * 2 * 10 * 10 * 16
    assert whole.activations - fused.activations == 2 * 10 * 10 * 4


def test_bfloat16_is_counted_where_its_operators_schema_does_not_know_it(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16), helper.make_node("Erf", ["h"], ["k"]),
        helper.make_node("GridSample", ["k", "grid"], ["y"]),
    ]  # fmt: skip
    grid = onnx.numpy_helper.from_array(np.zeros((1, 2, 2, 2), np.float32), "grid")
    path = graph(tmp_path, nodes, {"x": [1, 2, "n", 4]}, {"y": [1, 2, 2, 2]}, [grid])
    assert cost(path, {"n": 10}).activations == 2 * 10 * 4 * (4 + 2)


def test_a_dimension_without_a_size_is_named(tmp_path):
    path = graph(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(CheckpointError, match="free dimension 'n'"):
        cost(path, {})


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae_decoder"])
def test_floating_point_operations_are_those_that_pytorch_counts(exported, component):
    manifest = json.loads((exported / "bundle.json").read_text())
    file = manifest["components"][component]["graph"]
    configs = {
        f: json.loads((exported / f / "config.json").read_text()) for f in ("text_encoder", "transformer", "vae")
    }
    configs["text_encoder_2"] = configs["text_encoder"]
    made = next(g for g in graphs.graphs(configs) if g.component == component)
    feeds = made.feed(np.random.default_rng(0), SIZES)
    model = made.wrap(made.load(str(exported / made.folder)).eval())
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(
        display=False
    ) as counter:  # fmt: skip
        model(*(torch.from_numpy(v) for v in feeds.values()))
    assert cost(exported / file, SIZES).flops == pytest.approx(counter.get_total_flops(), rel=0.02)
