"""Bundles in bf16, which no processor runs, as one can play them: in float32, with each result rounded to bf16.

Unlike an export's own check, which traces the components again in fp32, this plays the graphs that the bundle holds.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from segue.errors import BundleError
from segue.export.checkpoint import convert
from segue.export.checks.oracle import load_pipeline
from segue.export.export import export
from segue.runtime.bundle import bundle_json, manifest, reader
from segue.runtime.diagnostics.difference import psnr
from segue.runtime.pipeline import open_model
from segue.runtime.request import Request
from segue.runtime.sampling.noise import philox_normal

NARROW, WIDE = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


def narrowed(checkpoint: Path, root: Path) -> Path:
    """Write a checkpoint again with bf16 weights to `root`, as published ones have them, and return it."""
    shutil.copytree(checkpoint, root, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in checkpoint.glob("*/*.safetensors"):
        convert.convert(file, root / file.relative_to(checkpoint), "bf16")
    return root


def check_bundle(checkpoint: Path, folder: Path, **request) -> tuple[float, float]:
    """Export `checkpoint` with bf16 weights into the empty `folder`, unchanged, and check what the bundle says of it.

    Returns how near a picture is to diffusers' in float32, in dB: that of the bundle, and diffusers' own in bf16.
    """
    notes: list[str] = []
    source, bundle = narrowed(checkpoint, folder / "checkpoint"), folder / "bundle"
    made = export(source, bundle, progress=lambda event: notes.append(event.text) if event.stage == "note" else None)
    assert {component.precision for component in made.components.values()} == {"bf16"}
    assert made.islands == {}
    assert {result.component for result in made.parity} == set(made.components)
    assert all(result.relative_l2 <= result.gate == 1e-4 for result in made.parity)
    assert any("in bf16, which ort-cpu does not run" in note for note in notes)
    with pytest.raises(BundleError, match="is in bf16, which ONNX Runtime cannot run on a processor"):
        open_model(bundle)
    noise = philox_normal(
        (made.latents.channels, *(side // made.latents.factor for side in request["size"])), 3, image=0
    )
    with open_model(rounded_bundle(bundle, folder / "rounded")) as model:
        ours = model.render(Request(**request, latents=noise[None])).images[0]
    full, half = (_drawn(checkpoint, kind, noise, made.sampler.guidance, **request) for kind in ("float32", "bfloat16"))
    return psnr(ours, full), psnr(half, full)


def _drawn(checkpoint: Path, kind: str, noise: np.ndarray, guidance: float, prompt, size, steps) -> np.ndarray:
    import torch

    pipeline = load_pipeline(checkpoint).to(getattr(torch, kind))
    with torch.no_grad():
        made = pipeline(
            prompt=prompt, height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=guidance,
            latents=torch.from_numpy(noise[None].copy()),
        )  # fmt: skip
    return np.asarray(made.images[0])


def rounded_graph(path: Path) -> onnx.ModelProto:
    """Return a bf16 graph in float32, weights included; what was bf16 is rounded to bf16 after each node."""
    model = onnx.load(path)
    graph, nodes = model.graph, []
    values = [*onnx.shape_inference.infer_shapes(model).graph.value_info, *graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    for tensor in graph.initializer:
        if tensor.data_type == NARROW:
            tensor.CopyFrom(_wide(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            assert not attribute.HasField("g"), node.op_type
            if attribute.name == "to" and attribute.i == NARROW:
                attribute.i = WIDE
            if attribute.HasField("t") and attribute.t.data_type == NARROW:
                attribute.t.CopyFrom(_wide(attribute.t))
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name and kinds[name] == NARROW:
                node.output[place] = f"{name}.exact"
                nodes.append(onnx.helper.make_node("Cast", [f"{name}.exact"], [f"{name}.bf16"], to=NARROW))
                nodes.append(onnx.helper.make_node("Cast", [f"{name}.bf16"], [name], to=WIDE))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def rounded_bundle(bundle: Path, out: Path) -> Path:
    """Write the bf16 bundle `bundle` to the new directory `out` as one that ort-cpu plays, and return it."""
    content = reader.read(bundle).manifest
    out.mkdir()
    files = [tokenizer.file for tokenizer in content.tokenizers.values()]
    for file in files:
        (out / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle / file, out / file)
    components = {}
    for name, component in content.components.items():
        if not component.weights:  # graphs of sampler steps, which a processor does not need
            continue
        assert component.precision == "bf16", name
        path = out / component.graph
        path.parent.mkdir(exist_ok=True)
        onnx.save(rounded_graph(bundle / component.graph), path)
        files.append(component.graph)
        components[name] = dataclasses.replace(component, weights=(), precision="fp32", parts=())
    held = {file: manifest.File(convert.digest(out / file), (out / file).stat().st_size, False) for file in files}
    made = dataclasses.replace(content, components=components, files=held, parity=(), fidelity=None, engines={})
    (out / manifest.FILE_NAME).write_bytes(bundle_json.dump(made))
    return out
