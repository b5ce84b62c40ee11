"""The inputs that take a LoRA do to a graph what the changed weights do to the model in PyTorch."""

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession

from segue.errors import UsageError
from segue.export.checkpoint import convert, headers
from segue.export.families.flux2_klein import graphs as klein
from segue.export.families.longcat import graphs as longcat
from segue.export.families.sd3 import graphs as sd3
from segue.export.families.sdxl import graphs as sdxl
from segue.export.families.wan import graphs as wan
from segue.export.graphs import trace
from segue.export.graphs.adapters import no_lora
from segue.runtime.lora.inputs import NAMES, SCALE
from support.traces import keep_traces

RANK = 2


def graph_of(name, root):
    folder = root / ("unet" if name == "sdxl" else "transformer")
    config = json.loads((folder / "config.json").read_text())
    make = {
        "sd3": sd3.transformer, "sdxl": sdxl.unet, "longcat": longcat.transformer, "wan": wan.motion,
        "klein": klein.transformer,
    }[name]  # fmt: skip
    return make("transformer", config) if name == "wan" else make(config), folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd3", "fp32"),
        ("sd3", "fp16"),
        ("sdxl", "fp32"),
        ("longcat", "fp32"),
        ("wan", "fp32"),
        ("klein", "fp32"),
    ],
)
def test_the_inputs_change_what_the_weights_would(request, tmp_path, name, kind):
    keep_traces(request.config)
    fixture = {"sd3": "tiny_checkpoint", "wan": "video_checkpoint"}.get(name, f"{name}_checkpoint")
    graph, source = graph_of(name, request.getfixturevalue(fixture))
    folder = tmp_path / graph.folder
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    file = "diffusion_pytorch_model.safetensors"
    convert.convert(source / file, folder / file, kind)
    written = trace.write(
        graph, kind, headers.read(folder / file, f"{graph.folder}/{file}"), folder / "m.onnx", rank=RANK
    )
    assert written.names == f"{graph.folder}/{NAMES}"
    zeros = no_lora(folder / "m.onnx")
    assert zeros.keys() == {port.name for port in written.added}
    rng = np.random.default_rng(0)
    lora = {n: (0.1 * rng.standard_normal(v.shape)).astype(v.dtype) for n, v in zeros.items()}
    lora[SCALE] = np.array([0.7], np.float32)
    model = graph.load(str(folder)).eval().float()
    state = model.state_dict()
    modules = {n.removeprefix("lora.").removesuffix(".A") for n in lora if n.endswith(".A")}
    layers = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert modules == {n for n in layers if f"{n}.weight" in written.tensors}
    feed = graph.feed(rng, graph.trials[0])
    weights = {port.name for port in graph.inputs if port.dtype == "weight"}
    feed = {n: v.astype(trace.NUMPY[kind]) if n in weights else v for n, v in feed.items()}
    with torch.inference_mode():
        for module in modules:
            down, up = (torch.from_numpy(lora[f"lora.{module}.{half}"]).float() for half in "AB")
            state[f"{module}.weight"] += 0.7 * (up @ down)
        given = [torch.from_numpy(v.astype(np.float32) if v.dtype.kind == "f" else v) for v in feed.values()]
        expected = graph.wrap(model)(*given).numpy()
    session = InferenceSession(str(folder / "m.onnx"), providers=["CPUExecutionProvider"])
    (found,), (plain,) = (session.run(None, {**feed, **beside}) for beside in (lora, zeros))
    gate = {"fp32": 1e-5, "fp16": 5e-3}[kind]
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < gate
    assert np.linalg.norm(plain - expected) / np.linalg.norm(expected) > 10 * gate


def test_a_bf16_graph_takes_the_halves_in_float32(request, tiny_checkpoint, tmp_path):
    keep_traces(request.config)
    graph, source = graph_of("sd3", tiny_checkpoint)
    file = "diffusion_pytorch_model.safetensors"
    convert.convert(source / file, tmp_path / file, "bf16")
    written = trace.write(graph, "bf16", headers.read(tmp_path / file, file), tmp_path / "m.onnx", rank=RANK)
    assert {port.dtype for port in written.added} == {"float32"}
    inputs = {value.name: value.dtype for value in ir.load(tmp_path / "m.onnx").graph.inputs}
    assert {inputs[port.name] for port in written.added} == {ir.DataType.FLOAT}


def test_a_rank_beyond_any_use_is_refused(request, tiny_checkpoint, tmp_path):
    keep_traces(request.config)
    graph, _ = graph_of("sd3", tiny_checkpoint)
    with pytest.raises(UsageError, match="must be 1 to 1024, got 5000"):
        trace.write(graph, "fp32", {}, tmp_path / "m.onnx", rank=5000)
