"""A small real bundle: ONNX graphs whose weights lie in safetensors files, word-level tokenizers, and a manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from segue.engines.ort.engine import OrtEngine
from segue.runtime.bundle import bundle_json
from segue.runtime.bundle import manifest as m
from segue.runtime.bundle.families import PREVIEW, TINY, VAE_DECODER

WORDS = ["a", "red", "green", "blue", "heart", "star", "cat", "dog", "on", "the", "moon"]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
NAMES = {"vae": VAE_DECODER, TINY: PREVIEW}  # components whose name is not that of their folder
LENGTH, WIDTHS, PROJECTIONS, JOINT, CHANNELS = 8, (6, 10), (5, 7), 20, 4
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}


def write_tiny_bundle(root: Path, dtype: str = "float32", small: bool = False) -> Path:
    """Write the bundle of family sd3 to the new directory `root` and return it; `small`: with a decoder of previews."""
    rng = np.random.default_rng(0)
    root.mkdir()

    def draw(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)

    graphs = {"transformer": _transformer(draw, dtype), "vae": _decoder(draw, dtype)}
    for i, name in enumerate(("text_encoder", "text_encoder_2")):
        graphs[name] = _text_encoder(draw, dtype, WIDTHS[i], PROJECTIONS[i])
        _tokenizer().save(str(with_parent(root / f"tokenizer{name[12:]}" / "tokenizer.json")))
    if small:
        graphs[TINY] = _decoder(draw, dtype)
    for folder, (graph, weights) in graphs.items():
        file = with_parent(root / folder / "weights.safetensors")
        save_file({name: array for name, array in weights.items() if array.dtype.kind == "f"}, file)
        point_outside(graph, file)
        (root / folder / _graph_name(folder)).write_bytes(graph.SerializeToString())
    components = {
        NAMES.get(folder, folder): _component(root, folder, dtype, weights) for folder, (_, weights) in graphs.items()
    }
    files = {
        str(p.relative_to(root).as_posix()): m.File(hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_size, False)
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }
    content = m.Manifest(
        schema=m.SCHEMA,
        name="tiny",
        family="sd3",
        components=components,
        tokenizers={
            "tokenizer": m.Tokenizer("tokenizer/tokenizer.json", LENGTH, 1),
            "tokenizer_2": m.Tokenizer("tokenizer_2/tokenizer.json", LENGTH, 2),
        },
        sampler=m.Sampler("flow-match-euler", 3.0, 1000, 4, 5.0),
        latents=m.Latents(CHANNELS, 8, 2, 1.5305, 0.0609),
        sizes=m.Sizes((32, 32), 16, 64, 16),
        t5_tokens=3,
        provenance=m.Provenance("made by tests", "", "Apache-2.0", (), {}),
        files=files,
    )
    (root / m.FILE_NAME).write_bytes(bundle_json.dump(content))
    return root


def point_outside(model: onnx.ModelProto, file: Path) -> None:
    """Turn the float initialisers of `model` into references into the safetensors `file` beside the graph.

    Integer ones stay inside: shape inference reads axes, and cannot from outside.
    """
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for tensor in model.graph.initializer:
        if tensor.name not in header:
            continue
        first, last = header[tensor.name]["data_offsets"]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": file.name, "offset": 8 + size + first, "length": last - first}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))


def make_model(nodes, inputs, outputs, weights) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "tiny",
        [helper.make_tensor_value_info(name, ELEMENT[dtype], shape) for name, dtype, shape in inputs],
        [helper.make_tensor_value_info(name, ELEMENT[dtype], shape) for name, dtype, shape in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _transformer(draw, dtype):
    weights = {
        "mix": draw(CHANNELS, CHANNELS, 1, 1),
        "from_text": draw(JOINT, CHANNELS),
        "from_pooled": draw(sum(PROJECTIONS), CHANNELS),
        "time": np.array([0.001], "float32"),
        "last": np.array([2, 3], "int64"),
        "tokens": np.array([1], "int64"),
    }
    nodes = [
        ("Conv", ["hidden_states", "mix"], ["mixed"], {}),
        ("ReduceMean", ["encoder_hidden_states", "tokens"], ["text"], {"keepdims": 0}),
        ("MatMul", ["text", "from_text"], ["a"], {}),
        ("MatMul", ["pooled_projections", "from_pooled"], ["b"], {}),
        ("Add", ["a", "b"], ["c"], {}),
        ("Mul", ["timestep", "time"], ["t32"], {}),
        ("Cast", ["t32"], ["t"], {"to": ELEMENT[dtype]}),
        ("Unsqueeze", ["t", "tokens"], ["column"], {}),
        ("Mul", ["c", "column"], ["scaled"], {}),
        ("Unsqueeze", ["scaled", "last"], ["spread"], {}),
        ("Add", ["mixed", "spread"], ["velocity"], {}),
    ]
    inputs = [
        ("hidden_states", dtype, ["batch", CHANNELS, "height", "width"]),
        ("encoder_hidden_states", dtype, ["batch", "text", JOINT]),
        ("pooled_projections", dtype, ["batch", sum(PROJECTIONS)]),
        ("timestep", "float32", ["batch"]),
    ]
    outputs = [("velocity", dtype, ["batch", CHANNELS, "height", "width"])]
    return make_model(nodes, inputs, outputs, weights), weights


def _text_encoder(draw, dtype, width, projection):
    weights = {
        "words": draw(len(WORDS) + 3, width),
        "places": draw(LENGTH, width),
        "projection": draw(width, projection),
        "one": np.array([1], "int64"),
    }
    nodes = [
        ("Gather", ["words", "input_ids"], ["found"], {}),
        ("Add", ["found", "places"], ["hidden_states"], {}),
        ("ReduceMean", ["hidden_states", "one"], ["mean"], {"keepdims": 0}),
        ("MatMul", ["mean", "projection"], ["pooled"], {}),
    ]
    outputs = [("hidden_states", dtype, ["batch", "length", width]), ("pooled", dtype, ["batch", projection])]
    return make_model(nodes, [("input_ids", "int64", ["batch", "length"])], outputs, weights), weights


def _decoder(draw, dtype):
    weights = {"up": draw(CHANNELS, 3, 8, 8)}
    nodes = [
        ("ConvTranspose", ["latents", "up"], ["raised"], {"strides": [8, 8]}),
        ("Tanh", ["raised"], ["pixels"], {}),
    ]
    inputs = [("latents", dtype, ["batch", CHANNELS, "height", "width"])]
    outputs = [("pixels", dtype, ["batch", 3, "pixel_height", "pixel_width"])]
    return make_model(nodes, inputs, outputs, weights), weights


def _tokenizer() -> Tokenizer:
    vocabulary = {BEGIN: 0, END: 1, "!": 2, **{word: i + 3 for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 0), (END, 1)]
    )
    return tokenizer


def _component(root: Path, folder: str, dtype: str, weights) -> m.Component:
    with OrtEngine(root / folder / _graph_name(folder), threads=1) as engine:
        return m.Component(
            graph=f"{folder}/{_graph_name(folder)}",
            weights=(f"{folder}/weights.safetensors",),
            precision={"float32": "fp32", "float16": "fp16"}[dtype],
            parameters=sum(array.size for array in weights.values()),
            opset=20,
            inputs=engine.inputs,
            outputs=engine.outputs,
        )


def _graph_name(folder: str) -> str:
    return "decoder.onnx" if folder in NAMES else "model.onnx"


def with_parent(path: Path) -> Path:
    """Return `path` after its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
