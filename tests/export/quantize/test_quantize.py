"""int8 bundles: smaller, near to what they were made from, and honest about it."""

import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from segue.engines.ort.engine import OrtEngine
from segue.engines.streamed import StreamedEngine, StreamedPart
from segue.errors import BundleError, ParityError, UsageError
from segue.export.checks.parity import check as parity
from segue.export.quantize import quantize as q
from segue.export.quantize.parity import DRAWN, GATES, RANDOM
from segue.export.quantize.quantize import quantize
from segue.export.unpack import unpack
from segue.runtime.bundle import reader
from segue.runtime.bundle.manifest import Part
from segue.runtime.diagnostics.difference import psnr
from segue.runtime.pipeline import open_model

PROMPTS = ("a red heart", "a hare")


@pytest.fixture(scope="module")
def narrow(exported, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "tiny"
    quantize(exported, out, prompts=PROMPTS, gate=20)
    return out


def test_every_component_is_in_int8_and_the_pictures_are_near(exported, narrow):
    made = reader.verify(narrow).manifest
    assert {c.precision for c in made.components.values()} == {"int8"}
    assert made.fidelity is not None
    assert made.fidelity.psnr >= made.fidelity.gate == 20
    assert (made.fidelity.against, made.fidelity.pictures) == (f"{reader.read(exported).digest} in fp32", 2)
    assert made.fidelity.source is None  # what it was made from is in fp32
    with open_model(exported) as before, open_model(narrow) as after:
        images = [model.generate("a red heart", size=64) for model in (before, after)]
    assert not np.array_equal(*images)
    assert psnr(*images) > 15


@pytest.mark.slow
def test_a_unet_whose_types_onnx_does_not_infer_is_quantized_too(sdxl_bundle, tmp_path):
    made = quantize(sdxl_bundle, tmp_path / "narrow")
    assert made.components["unet"].precision == "int8"
    assert made.fidelity.psnr > 40  # 52.6 here
    assert {result.component for result in made.parity} == made.components.keys()


def test_each_component_is_compared_with_its_weights_in_fp32(narrow):
    found = reader.read(narrow).manifest
    counts = Counter(result.component for result in found.parity)
    assert counts == dict.fromkeys(found.components, 2)
    assert all(0 < result.relative_l2 <= result.gate == GATES["int8"] for result in found.parity)
    notes = {result.component: result.note for result in found.parity}
    assert notes.pop("vae_encoder") == RANDOM
    assert set(notes.values()) == {DRAWN}


def test_what_came_in_parts_comes_in_parts_again(narrow, tmp_path):
    copy = tmp_path / "tiny"
    shutil.copytree(narrow, copy)
    content = reader.read(copy).manifest
    spec = content.components["transformer"]
    cut = {"transformer": replace(spec, parts=(Part("transformer/model_part_0.onnx", (), 40_000, 0, 0),))}
    made = q._in_parts(content, replace(content, components=content.components | cut), copy)
    parts = made.components["transformer"].parts
    assert len(parts) > 1
    assert max(part.bytes for part in parts) <= 40_000
    assert {part.graph for part in parts} < made.files.keys()
    random = np.random.default_rng(0)
    feeds = {
        port.name: random.standard_normal([4 if isinstance(size, str) else size for size in port.shape], np.float32)
        for port in spec.inputs
    }
    streamed = [StreamedPart(partial(OrtEngine, copy / part.graph, 1), part.inputs) for part in parts]
    with (
        OrtEngine(copy / spec.graph, 1) as engine,
        StreamedEngine(streamed, spec.inputs, spec.outputs, "transformer", ahead=False) as apart,
    ):
        expected, found = engine.run(feeds), apart.run(feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_component_beyond_its_gate_makes_no_bundle(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(q, "write_bundle", lambda bundle, content, out: bundle)
    monkeypatch.setattr(q, "_dynamic", lambda twin, scratch: q._narrow(ir.load(twin)))
    monkeypatch.setitem(GATES, "int8", 1e-6)
    with pytest.raises(ParityError, match=r"text_encoder in int8 differs from its weights in fp32 by .* gate is 1e-06"):
        quantize(exported, tmp_path / "out", prompts=PROMPTS[:1])
    assert list(tmp_path.iterdir()) == []


def test_matrices_are_multiplied_as_integers_and_convolutions_are_not(narrow):
    kinds = {}
    for name in ("transformer/model.onnx", "vae/decoder.onnx"):
        kinds[name] = {node.op_type for node in ir.load(narrow / name).graph}
    assert "MatMulInteger" in kinds["transformer/model.onnx"]
    assert {"Conv", "DequantizeLinear"} <= kinds["vae/decoder.onnx"]
    assert "ConvInteger" not in kinds["vae/decoder.onnx"]


def test_weights_lie_in_safetensors_files_of_bytes(narrow):
    from safetensors.numpy import load_file

    arrays = load_file(narrow / "text_encoder/model_int8.safetensors")
    assert {str(a.dtype) for a in arrays.values()} & {"int8", "uint8"}


def test_pictures_below_the_gate_make_no_bundle(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(q, "write_bundle", lambda bundle, content, out: bundle)  # which is in fp32
    monkeypatch.setattr(q, "_dynamic", lambda twin, scratch: q._narrow(ir.load(twin)))  # weights alone: quicker
    with pytest.raises(ParityError, match="below the gate of 90"):
        quantize(exported, tmp_path / "out", prompts=PROMPTS[:1], gate=90)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_bundle_is_no_source(narrow, tmp_path):
    with pytest.raises(BundleError, match="in int8 already"):
        quantize(narrow, tmp_path / "out")
    with pytest.raises(BundleError, match="was quantized"):
        unpack(narrow, tmp_path / "out")
    with pytest.raises(UsageError, match="was quantized"):
        parity(narrow, reader.read(narrow).manifest.components)


def test_a_video_bundle_is_refused(video_bundle, tmp_path):
    with pytest.raises(BundleError, match="draws videos"):
        quantize(video_bundle, tmp_path / "out")


def test_a_weight_of_zeros_stays_zero():
    value = ir.Value(name="w", const_value=ir.tensor(np.zeros((64, 64), np.float16)))
    value.shape, value.dtype = ir.Shape((64, 64)), ir.DataType.FLOAT16
    x = ir.Input("x", ir.Shape((1, 64)), ir.TensorType(ir.DataType.FLOAT16))
    node = ir.node("MatMul", [x, value])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20}, name="g")
    model = q._narrow(ir.Model(graph, ir_version=10))
    scale = model.graph.initializers["w_scale"].const_value.numpy()
    assert scale.dtype == np.float16
    assert np.all(scale > 0)
    assert not model.graph.initializers["w_quantized"].const_value.numpy().any()
