"""Real builds by TensorRT-RTX, on a machine without a GPU as well."""

import io
import os
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segue.engines.tensorrt.build import Settings, build, has_fused_attention, make_logger
from segue.engines.tensorrt.child import build_apart
from segue.errors import Cancelled, EngineError, UsageError


def settings(low=1, high=4, **changed):
    profile = {"x": ((low, 16), (2, 16), (high, 16))}
    return Settings(**{"target": "tensorrt-rtx", "capabilities": (89,), "profiles": (profile,)} | changed)


def save(path, nodes, shape, dtype, initializers=(), opset=23):
    """A graph from x to y."""
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


@pytest.fixture
def graph(tmp_path):
    """y = relu(x w), x [n, 16] in half precision."""
    weights = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float16)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    tensor = onnx.numpy_helper.from_array(weights, "w")
    return save(tmp_path / "g.onnx", nodes, ["n", 16], TensorProto.FLOAT16, [tensor])


def test_an_engine_holds_the_weights_and_the_builder_reports(graph):
    out, seen = io.BytesIO(), []
    built = build(graph, settings(), out, lambda phase, done, total: seen.append((done, total)))
    weights = onnx.numpy_helper.to_array(onnx.load(graph).graph.initializer[0])
    assert weights.tobytes() in out.getvalue()
    assert built.layers > 0
    assert seen
    assert all(0 <= done <= total for done, total in seen)


def test_one_engine_serves_several_gpus_and_profiles(graph):
    one, several = io.BytesIO(), io.BytesIO()
    build(graph, settings(), one)
    both = settings().profiles + settings(4, 8).profiles
    build(graph, settings(capabilities=(80, 86, 89, 120), profiles=both), several)
    assert len(several.getvalue()) > len(one.getvalue())


@pytest.mark.parametrize(("dtype", "fused"), [(TensorProto.FLOAT16, 1), (TensorProto.FLOAT, 0)])
def test_attention_is_fused_where_there_is_a_kernel_and_taken_apart_elsewhere(tmp_path, dtype, fused):
    nodes = [
        helper.make_node("Neg", ["x"], ["k"]), helper.make_node("Abs", ["x"], ["v"]),
        helper.make_node("Attention", ["x", "k", "v"], ["a"]), helper.make_node("Relu", ["a"], ["y"]),
    ]  # fmt: skip
    graph = save(tmp_path / "a.onnx", nodes, [1, 2, "n", 64], dtype)
    profile = {"x": ((1, 2, 8, 64), (1, 2, 8, 64), (1, 2, 64, 64))}
    built = build(graph, settings(profiles=(profile,)), io.BytesIO())
    assert (built.fused, built.decomposed) == (fused, 1 - fused)


def test_a_head_of_512_has_no_fused_kernel():
    assert has_fused_attention("tensorrt-rtx", "HALF", 128, (89,))
    assert not has_fused_attention("tensorrt-rtx", "HALF", 512, (89,))


@pytest.mark.parametrize(
    ("element", "dtype", "head"), [(TensorProto.FLOAT, "FLOAT", 64), (TensorProto.FLOAT16, "HALF", 512)]
)
def test_the_parser_takes_attention_for_which_there_is_no_kernel(tmp_path, element, dtype, head):
    import tensorrt_rtx as trt

    inputs = [helper.make_tensor_value_info(name, element, [1, 2, 64, head]) for name in "qkvy"]
    graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["y"])], "g", inputs[:3], inputs[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.supports_model_v2(model.SerializeToString())  # so its answer does not decide (docs/design/engines.md)
    assert not has_fused_attention("tensorrt-rtx", dtype, head, (89,))


def test_an_operator_that_the_builder_does_not_know_is_named(tmp_path):
    graph = save(tmp_path / "d.onnx", [helper.make_node("DFT", ["x"], ["y"])], [1, 16, 2], TensorProto.FLOAT, opset=20)
    with pytest.raises(EngineError, match=r"does not accept the graph.*DFT"):
        build(graph, settings(), io.BytesIO())


def test_what_the_builder_refuses_is_its_own_reason(graph):
    with pytest.raises(EngineError, match=r"could not build an engine.*SM 8.9"):
        build(graph, settings(profiles=()), io.BytesIO())


def test_a_profile_names_the_inputs_of_the_graph(graph):
    with pytest.raises(UsageError, match=r"\['z'\]; the graph takes \['x'\]"):
        build(graph, settings(profiles=({"z": ((1,), (1,), (1,))},)), io.BytesIO())


def test_a_build_can_be_cancelled(graph):
    with pytest.raises(Cancelled):
        build(graph, settings(), io.BytesIO(), cancel=lambda: True)


def test_what_writing_raises_is_raised(graph):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        build(graph, settings(), Full())


@pytest.mark.parametrize("capabilities", [(), (90,), (89, 89)])
def test_capabilities_that_cannot_be_built_for_are_refused(capabilities):
    with pytest.raises(UsageError, match="89 for an RTX 4090"):
        settings(capabilities=capabilities)


def test_tensorrt_takes_no_capability():
    with pytest.raises(UsageError, match="only for this machine's GPU"):
        settings(target="tensorrt")


def test_a_child_builds_the_same_and_says_how_much_memory_it_took(graph, tmp_path):
    seen = []
    built = build_apart(graph, settings(), tmp_path / "plan", lambda *step: seen.append(step))
    weights = onnx.numpy_helper.to_array(onnx.load(graph).graph.initializer[0])
    assert weights.tobytes() in (tmp_path / "plan").read_bytes()
    assert built.peak > 50 * 2**20
    assert seen


def test_a_builder_that_crashes_is_an_error_and_not_the_end_of_the_program(tmp_path):
    node = helper.make_node("Attention", ["x", "x", "x"], ["y"])  # TensorRT-RTX 1.7.1 dies of it
    graph = save(tmp_path / "a.onnx", [node], [1, 2, 32, 64], TensorProto.FLOAT16)
    profile = {"x": ((1, 2, 32, 64),) * 3}
    with pytest.raises(EngineError, match=r"died with exit status -11.*report it"):
        build_apart(graph, settings(profiles=(profile,)), tmp_path / "plan")


def test_what_a_builder_said_comes_with_its_error(graph, tmp_path):
    with pytest.raises(EngineError) as own:
        build(graph, settings(profiles=()), io.BytesIO())
    with pytest.raises(EngineError) as childs:
        build_apart(graph, settings(profiles=()), tmp_path / "plan")
    errors = [line for line in own.value.log if line.startswith("error: ")]
    assert errors
    assert set(errors) <= set(childs.value.log)


@pytest.mark.skipif(os.name == "nt", reason="a script stands in for the interpreter")
def test_what_a_child_said_before_it_crashed_comes_with_the_error(graph, tmp_path, monkeypatch):
    crash = "import os, segue.engines.tensorrt.child as child; child._log('error: enough'); os.abort()"
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{crash}"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineError, match="died with exit status -6") as crashed:
        build_apart(graph, settings(), tmp_path / "plan")
    assert "error: enough" in crashed.value.log


def test_errors_of_a_child_are_those_of_the_builder(graph, tmp_path):
    with pytest.raises(EngineError, match="could not build an engine"):
        build_apart(graph, settings(profiles=()), tmp_path / "plan")
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(FileExistsError):
        build_apart(graph, settings(), tmp_path / "taken")
    with pytest.raises(Cancelled):
        build_apart(graph, settings(), tmp_path / "other", cancel=lambda: True)


def test_a_frozen_program_builds_in_its_own_process(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert build_apart(graph, settings(), tmp_path / "plan").peak == 0
    assert (tmp_path / "plan").stat().st_size > 1000
