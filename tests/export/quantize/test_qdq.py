"""Denoisers in int8 and float8 for GPUs: what the graph holds, that it was calibrated, that TensorRT-RTX takes it."""

import numpy as np
import onnx_ir as ir
import pytest
from safetensors import safe_open

from segue.engines.ort.engine import OrtEngine
from segue.errors import BundleError, EngineError, ParityError, UsageError
from segue.export.quantize.parity import DRAWN, GATES
from segue.export.quantize.qdq import KINDS, calibration_feeds, largest_inputs, quantize_products
from segue.export.quantize.quantize import quantize
from segue.runtime.bundle import reader
from segue.runtime.bundle.shapes import SizeRange
from segue.runtime.engine_cache import build
from segue.runtime.engine_cache.build import BuildRequest
from segue.runtime.pipeline import Model, open_model
from segue.runtime.request import Request

PROMPTS = ("a red heart", "a hare")
SMALL = (SizeRange(*[(64, 64)] * 3),)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache directory, private to each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["w8a8", "fp8"])
def narrow(request, half, tmp_path_factory):
    """The tiny bundle with a quantized denoiser, and the kind."""
    out = tmp_path_factory.mktemp("qdq") / "tiny"
    quantize(half, out, kind=request.param, prompts=PROMPTS, gate=15)
    return out, request.param


def product(transposed: bool, dtype=np.float32) -> tuple[ir.Model, np.ndarray]:
    """Return a graph y = x w with a weight that has one large output channel, and that weight as it is multiplied."""
    weight = np.random.default_rng(0).standard_normal((48, 64)).astype(dtype)
    weight[:, 3] *= 50
    held = weight.T.copy() if transposed else weight
    value = ir.Value(name="w", const_value=ir.tensor(held))
    value.shape, value.dtype = ir.Shape(held.shape), ir.DataType.from_numpy(held.dtype)
    x = ir.Input("x", ir.Shape((4, 48)), ir.TensorType(value.dtype))
    node = ir.node("Gemm", [x, value], attributes={"transB": int(transposed)})
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    node.outputs[0].shape = ir.Shape((4, 64))
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10), weight


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("kind", "near"), [("w8a8", 0.02), ("fp8", 0.06)])
def test_a_quantized_product_is_near_the_exact_one(tmp_path, transposed, kind, near):
    model, weight = product(transposed)
    x = np.random.default_rng(1).standard_normal((4, 48)).astype(np.float32)
    ir.save(model, tmp_path / "plain.onnx")
    largest = largest_inputs(tmp_path / "plain.onnx", [{"x": x}, {"x": x / 2}], tmp_path)
    assert largest == {"x": pytest.approx(np.abs(x).max())}
    assert quantize_products(model, largest, KINDS[kind]) == 1
    ir.save(model, tmp_path / "narrow.onnx")
    with OrtEngine(tmp_path / "narrow.onnx") as engine:
        made = engine.run({"x": x})["y"]
    error = np.linalg.norm(made - x @ weight, axis=0) / np.linalg.norm(x @ weight, axis=0)
    assert 0 < error.max() < 3 * near
    assert np.median(error) < near


def test_weights_have_a_scale_for_each_output_channel_in_int8_and_one_in_float8():
    for kind, shape in (("w8a8", (64,)), ("fp8", ())):
        model, _ = product(False, np.float16)
        quantize_products(model, {"x": 1.0}, KINDS[kind])
        held = model.graph.initializers
        assert held["w_1_scale"].const_value.numpy().shape == shape
        assert held["w_1_scale"].const_value.numpy().dtype == np.float16
        assert held["w_1_narrow"].const_value.numpy().dtype == KINDS[kind].numpy
        assert "w" not in held


def test_calibration_sees_each_call_of_every_picture(half, tmp_path):
    feeds = list(calibration_feeds(reader.read(half), "transformer", PROMPTS, tmp_path))
    steps = reader.read(half).manifest.sampler.steps
    assert len(feeds) == 2 * steps
    assert len({b"".join(array.tobytes() for array in feed.values()) for feed in feeds}) == len(feeds)


def test_calls_wait_in_files_and_give_the_scales_of_all_of_them_at_once(half, tmp_path):
    opened, calls = reader.read(half), []
    graph = opened.path(opened.manifest.components["transformer"].graph)

    def keep(name, feeds, made):
        if name == "transformer":
            calls.append(feeds)

    with Model(opened, on_call=keep) as model:
        list(model.pictures(Request(list(PROMPTS))))
    feeds = calibration_feeds(opened, "transformer", PROMPTS, tmp_path)
    assert len(list(tmp_path.glob("call_*"))) == len(calls)
    first = next(feeds)
    assert {name: array.dtype for name, array in first.items()} == {n: array.dtype for n, array in calls[0].items()}
    assert len(list(tmp_path.glob("call_*"))) == len(calls) - 1
    expected = largest_inputs(graph, calls[1:], tmp_path)
    assert largest_inputs(graph, feeds, tmp_path) == expected
    assert all(expected.values())
    assert not list(tmp_path.glob("call_*"))


@pytest.mark.slow
def test_the_denoiser_alone_changes(half, narrow):
    out, kind = narrow
    before, after = reader.read(half).manifest, reader.verify(out).manifest
    assert {name for name, c in after.components.items() if c.precision != before.components[name].precision} == {
        "transformer"
    }
    assert after.components["transformer"].precision == kind
    assert after.components["transformer"].inputs == before.components["transformer"].inputs
    with safe_open(out / f"transformer/model_{kind}.safetensors", "numpy") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert ("I8" if kind == "w8a8" else "F8_E4M3") in dtypes
    nodes = ir.load(out / "transformer/model.onnx").graph
    pairs = [sum(node.op_type == name for node in nodes) for name in ("QuantizeLinear", "DequantizeLinear")]
    assert 0 < pairs[0] < pairs[1]


@pytest.mark.slow
def test_its_pictures_are_measured_and_drawn(half, narrow):
    out, kind = narrow
    before, made = reader.read(half), reader.read(out).manifest
    found = made.fidelity
    assert (found.against, found.pictures) == (f"{before.digest} in fp32", 2)
    assert found.source == before.manifest.fidelity
    denoiser = [result for result in made.parity if result.component == "transformer"]
    assert [0 < r.relative_l2 <= r.gate == GATES[kind] and r.note == DRAWN for r in denoiser] == [True, True]
    kept = tuple(result for result in before.manifest.parity if result.component != "transformer")
    assert tuple(result for result in made.parity if result.component != "transformer") == kept
    assert found.psnr >= 15
    with open_model(half) as before, open_model(out) as after:
        images = [model.generate("a red heart", size=64) for model in (before, after)]
    assert not np.array_equal(*images)


@pytest.mark.slow
def test_rtx_builds_engines_of_it_where_the_gpu_has_the_numbers(narrow):
    out, kind = narrow
    opened = reader.read(out)
    (made,) = build.build(opened, BuildRequest("tensorrt-rtx", (89,), SMALL, ("transformer",)))
    assert made.entry.record.fingerprint.precision == kind
    ampere = BuildRequest("tensorrt-rtx", (80,), SMALL, ("transformer",))
    if kind == "fp8":
        with pytest.raises(EngineError, match="fp8"):
            build.build(opened, ampere)
    else:
        assert build.build(opened, ampere)


def test_an_unknown_kind_is_refused(half, tmp_path):
    with pytest.raises(UsageError, match="unknown kind 'int4'"):
        quantize(half, tmp_path / "a", kind="int4")
    assert not list(tmp_path.glob("a"))


@pytest.mark.slow
def test_a_quantized_bundle_is_no_source(narrow, tmp_path):
    out, kind = narrow
    with pytest.raises(BundleError, match=f"in {kind} already"):
        quantize(out, tmp_path / "b")
    assert not list(tmp_path.glob("b"))


@pytest.mark.slow
def test_pictures_below_the_gate_make_no_bundle(half, narrow, tmp_path):
    _, kind = narrow
    with pytest.raises(ParityError, match=f"in {kind} have .* below the gate of 99"):
        quantize(half, tmp_path / "c", kind=kind, prompts=PROMPTS[:1], gate=99)
    assert not list(tmp_path.glob("c"))


def test_a_weight_that_is_multiplied_with_twice_is_stored_once_for_each_way(tmp_path):
    model, weight = product(False)
    graph, (first,) = model.graph, list(model.graph)
    again = [ir.node("Gemm", [first.inputs[0], first.inputs[1]]), None]
    square = ir.Input("z", ir.Shape((4, 64)), graph.inputs[0].type)
    again[1] = ir.node("Gemm", [square, first.inputs[1]], attributes={"transB": 1})
    graph.inputs.append(square)
    for number, node in enumerate(again):
        node.outputs[0].name, node.outputs[0].type = f"y{number}", graph.inputs[0].type
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    assert quantize_products(model, {"x": 4.0, "z": 4.0}, KINDS["w8a8"]) == 3
    ir.save(model, tmp_path / "g.onnx")
    rng = np.random.default_rng(1)
    x, z = (rng.standard_normal((4, n)).clip(-3, 3).astype(np.float32) for n in (48, 64))
    with OrtEngine(tmp_path / "g.onnx") as engine:
        made = engine.run({"x": x, "z": z})
    assert np.array_equal(made["y"], made["y0"])
    expected = z @ weight.T
    assert np.linalg.norm(made["y1"] - expected) < 0.05 * np.linalg.norm(expected)


def test_what_lies_beyond_the_calibrated_range_is_clipped(tmp_path):
    for kind in KINDS:
        model, weight = product(False)
        quantize_products(model, {"x": 1.0}, KINDS[kind])
        ir.save(model, tmp_path / f"{kind}.onnx")
        x = np.full((4, 48), 7, np.float32)
        with OrtEngine(tmp_path / f"{kind}.onnx") as engine:
            made = engine.run({"x": x})["y"]
        expected = weight.sum(0)
        assert np.linalg.norm(made[0] - expected) < 0.1 * np.linalg.norm(expected)
