import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segue.engines.ort.engine import CPU, OrtEngine, default_threads
from segue.engines.ort.providers import CUDA
from segue.errors import BundleError, EngineError, SegueError, UsageError


@pytest.fixture
def graph(tmp_path):
    """y = x + a in float16, z = reshape(x, shape); x is [n, 3]."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "a"], ["y"]), helper.make_node("Reshape", ["x", "shape"], ["z"])]
    inputs = [
        value("x", TensorProto.FLOAT16, ["n", 3]),
        value("a", TensorProto.FLOAT16, ["n", 3]),
        value("shape", TensorProto.INT64, [1]),
    ]
    outputs = [value("y", TensorProto.FLOAT16, ["n", 3]), value("z", TensorProto.FLOAT16, ["m"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def feeds(n=2):
    return {"x": np.ones((n, 3), np.float32), "a": np.full((n, 3), 0.5, np.float64), "shape": np.array([-1], np.int32)}


def test_feeds_are_cast_to_the_graphs_dtypes_and_outputs_keep_them(graph):
    with OrtEngine(graph, threads=1) as engine:
        out = engine.run(feeds())
    assert out["y"].dtype == np.float16
    assert np.array_equal(out["y"], np.full((2, 3), 1.5, np.float16))
    assert out["z"].shape == (6,)


def test_a_scalar_stays_one(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.INT64, [])
    shape = helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])
    graph = helper.make_graph([helper.make_node("Shape", ["x"], ["y"])], "g", [value], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    with OrtEngine(tmp_path / "g.onnx", threads=1) as engine:
        assert engine.run({"x": np.array(3, np.int32)})["y"].shape == (0,)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (TensorProto.INT64, np.array([999.0], np.float32), [999]),
        (TensorProto.INT32, np.array([2**31 - 1], np.int64), [2**31 - 1]),
        (TensorProto.INT32, np.array([2**31], np.int64), None),
        (TensorProto.INT8, np.array([-128.0]), [-128]),
        (TensorProto.UINT8, np.array([-1], np.int64), None),
        (TensorProto.UINT16, np.array([65535], np.int64), [65535]),
        (TensorProto.BOOL, np.array([1, 0], np.int64), [True, False]),
        (TensorProto.BOOL, np.array([2], np.int64), None),
    ],
)
def test_whole_numbers_fit_every_integer_input_that_holds_them(tmp_path, kind, given, expected):
    inputs = [helper.make_tensor_value_info("x", kind, ["n"])]
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)]
    made = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    with OrtEngine(tmp_path / "g.onnx", threads=1) as engine:
        if expected is None:
            with pytest.raises(UsageError, match="takes x as"):
                engine.run({"x": given})
        else:
            assert engine.run({"x": given})["y"].tolist() == expected


def test_specs_tell_names_dtypes_and_free_dimensions(graph):
    engine = OrtEngine(graph, threads=1)
    assert [(s.name, s.dtype, s.shape) for s in engine.inputs] == [
        ("x", "float16", ("n", 3)),
        ("a", "float16", ("n", 3)),
        ("shape", "int64", (1,)),
    ]
    assert engine.providers == (CPU,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": None}, "missing or unknown: x"),
        ({"b": np.zeros(1)}, "missing or unknown: b"),
        ({"x": np.ones((2, 4), np.float32)}, r"x of shape \['n', 3\], got \[2, 4\]"),
        ({"x": np.ones(3, np.float32)}, r"got \[3\]"),
        ({"a": np.ones((5, 3), np.float32)}, r"takes a of shape .* got \[5, 3\] with the sizes \{'n': 2\}"),
        ({"x": np.ones((2, 3), np.int64)}, "x as float16, got int64"),
        ({"shape": np.array([-1.5])}, "shape as int64, got float64"),
        ({"shape": np.array([np.inf])}, "shape as int64, got float64"),
        ({"shape": np.array([1e30])}, "shape as int64, got float64"),
        ({"shape": np.array([True])}, "shape as int64, got bool"),
    ],
)
def test_feeds_that_do_not_fit_are_named_before_the_backend_sees_them(graph, change, said):
    table = {name: array for name, array in (feeds() | change).items() if array is not None}
    with OrtEngine(graph, threads=1) as engine, pytest.raises(UsageError, match=said):
        engine.run(table)


def test_a_failure_inside_the_backend_names_the_shapes_and_prints_nothing(graph, capfd):
    with OrtEngine(graph, threads=1) as engine, pytest.raises(SegueError, match=r"x \[2, 3\].*segue verify"):
        engine.run(feeds() | {"shape": np.array([5])})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("loaded", [True, False])
def test_the_provider_that_runs_is_read_from_the_session_and_not_from_what_is_compiled_in(graph, monkeypatch, loaded):
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        """What onnxruntime-gpu gives: by CUDA, or by the processor alone where a library of CUDA is missing."""

        def __init__(self, path, options, providers, enable_fallback, disabled_optimizers):
            assert providers[0][0] == CUDA
            assert disabled_optimizers == ["ConstantFolding"]  # it would copy every weight that is transposed
            super().__init__(path, options, providers=[CPU])

        def get_providers(self):
            return [CUDA, CPU] if loaded else super().get_providers()

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    if loaded:
        assert OrtEngine(graph, 1, CUDA).providers == (CUDA, CPU)
    else:
        with pytest.raises(EngineError, match=f"with {CUDA}; it would use {CPU}.*segue doctor"):
            OrtEngine(graph, 1, CUDA)


def test_a_file_that_is_no_graph_is_a_bundle_error(tmp_path, capfd):
    (tmp_path / "g.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"cannot load the graph g\.onnx"):
        OrtEngine(tmp_path / "g.onnx")
    assert capfd.readouterr() == ("", "")


def test_an_ort_format_flatbuffer_is_not_loaded(graph, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "other.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(graph), options, providers=[CPU])
    with pytest.raises(BundleError):
        OrtEngine(tmp_path / "other.ort")


def test_a_closed_engine_says_so(graph):
    engine = OrtEngine(graph, threads=1)
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="was closed"):
        engine.run(feeds())


def test_threads_out_of_measure_are_refused_and_the_default_is_within_the_machine(graph):
    for threads in (0, 257):
        with pytest.raises(UsageError, match=f"threads must be .*got {threads}"):
            OrtEngine(graph, threads=threads)
    assert default_threads() >= 1
