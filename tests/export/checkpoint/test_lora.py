"""LoRA files merged at export draw what diffusers draws with them; the checkpoint's own weights stay."""

import hashlib
import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.errors import CheckpointError
from segue.export.checkpoint import convert, headers
from segue.export.checkpoint.lora.merge import PATCH, Lora, merge
from segue.export.checks import oracle
from segue.export.checks.fp32_twin import apply_patch, write_bundle, write_twin
from segue.export.export import export
from segue.export.families.sd3 import graphs as sd3
from segue.export.families.sdxl import graphs as sdxl
from segue.export.unpack import unpack
from segue.runtime.bundle import reader
from segue.runtime.pipeline import open_model
from segue.runtime.sampling.noise import philox_normal

MODULE = "transformer_blocks.0.attn.to_q"


def lora(path, alpha=None, metadata=None, prefix="transformer", rank=2):
    """A LoRA of two linears of the tiny transformer, which has a width of 32."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for module, given, taken in ((MODULE, 32, 32), ("transformer_blocks.1.ff.net.2", 32, 128)):
        tensors[f"{prefix}.{module}.lora_A.weight"] = torch.randn(rank, taken, generator=generator)
        tensors[f"{prefix}.{module}.lora_B.weight"] = torch.randn(given, rank, generator=generator)
        if alpha is not None:
            tensors[f"{prefix}.{module}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, path, metadata)
    return path


def merged(checkpoint, tmp_path, loras, kind="fp32"):
    """Merge files into the transformer of a checkpoint and return the patch; nothing is traced."""
    (tmp_path / "transformer").mkdir(parents=True)
    file = "transformer/diffusion_pytorch_model.safetensors"
    convert.convert(checkpoint / file, tmp_path / file, kind)
    merge(loras, {"transformer": headers.read(tmp_path / file, file)}, {"transformer": kind}, tmp_path)
    return load_file(tmp_path / "transformer" / PATCH)


@pytest.mark.slow
def test_a_bundle_draws_what_diffusers_draws_with_the_lora(tiny_checkpoint, tmp_path):
    file = lora(tmp_path / "l.safetensors")
    made = export(tiny_checkpoint, tmp_path / "b", loras=[Lora(file, 0.5)], parity=False)
    reader.verify(tmp_path / "b")
    assert f"transformer/{PATCH}" in made.components["transformer"].weights
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [(m.file, m.sha256, m.factor) for m in made.provenance.merged] == [("l.safetensors", digest, 0.5)]
    pipeline = oracle.load_pipeline(tiny_checkpoint)
    plain = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(file)
    pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)
    noise = philox_normal((8, 8, 8), 0, image=0)[None]
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    with torch.no_grad():
        expected = pipeline(
            "a red heart", latents=torch.from_numpy(noise.copy()), max_sequence_length=3, **options
        ).images.numpy()
    with open_model(tmp_path / "b") as model:
        found = next(model.pictures(_request(noise)))
    assert oracle.relative_l2(found.latents[None], expected) < 1e-4
    unpack(tmp_path / "b", tmp_path / "again")
    kept = load_file(tmp_path / "again/transformer/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in plain.items() if name in kept)
    assert not (tmp_path / "again/transformer" / PATCH).exists()


def _request(noise):
    from segue.runtime.request import Request

    return Request("a red heart", steps=2, guidance=1.0, size=64, latents=noise)


def test_the_patch_holds_the_changed_weights_alone(tiny_checkpoint, tmp_path):
    file = lora(tmp_path / "l.safetensors")
    patch = merged(tiny_checkpoint, tmp_path / "b", [Lora(file), Lora(file, -0.25)])
    assert set(patch) == {f"{MODULE}.weight", "transformer_blocks.1.ff.net.2.weight"}
    base = load_file(tiny_checkpoint / "transformer/diffusion_pytorch_model.safetensors")[f"{MODULE}.weight"]
    tensors = load_file(file)
    change = tensors[f"transformer.{MODULE}.lora_B.weight"] @ tensors[f"transformer.{MODULE}.lora_A.weight"]
    assert torch.allclose(patch[f"{MODULE}.weight"], base + 0.75 * change, atol=1e-5)


def test_alpha_may_stand_in_diffusers_metadata(tiny_checkpoint, tmp_path):
    said = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})}
    patches = []
    for name, options in (("a", {"alpha": 4}), ("b", {"metadata": said})):
        file = lora(tmp_path / f"{name}.safetensors", **options)
        patches.append(merged(tiny_checkpoint, tmp_path / name, [Lora(file)], "fp16")[f"{MODULE}.weight"])
    assert patches[0].dtype == torch.float16
    assert torch.equal(*patches)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {k.replace("transformer.", "prior."): v for k, v in t.items()}, "which the checkpoint lacks"),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "has no second half"),
        (lambda t: {k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in t.items()}, "a weight of"),
        (lambda t: t | {"transformer.x.wrong": torch.ones(2)}, "'transformer.x.wrong', which is not part of a LoRA"),
        (
            lambda t: t | {"lora_unet_down.lokr_w1": torch.ones(2)},
            "'lora_unet_down.lokr_w1', which the checkpoint lacks",
        ),
        (lambda t: t | {f"transformer.{MODULE}.alpha": torch.ones(2)}, "where one number is expected"),
        (lambda t: t | {f"transformer.{MODULE}.dora_scale": torch.ones(3)}, "the magnitude does not fit"),
        (lambda t: t | {f"transformer.{MODULE}.lokr_w1": torch.ones(2, 2)}, "not all of a known form"),
        (lambda t: t | {"transformer.proj_out.alpha": torch.ones(1)}, "without the change it belongs to"),
        (lambda t: t | {"transformer.proj_out.diff_b": torch.ones(1)}, "a bias of"),
        (
            lambda t: t | {f"transformer.transformer_blocks.0.attn.{n}.lora_{half}.weight": torch.ones(shape)
                           for n in ("to_out", "to_out.0") for half, shape in (("A", (2, 32)), ("B", (32, 2)))},
            "changes one weight as '.*to_out' and as '.*to_out.0'|as '.*to_out.0' and as '.*to_out'",
        ),
        (lambda t: {}, "holds 'nothing'|holds nothing"),
        (lambda t: {k: v * 1e30 for k, v in t.items()}, "larger than fp32 can hold"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(tiny_checkpoint, tmp_path, change, why):
    file = lora(tmp_path / "l.safetensors")
    save_file(change(load_file(file)), file)
    with pytest.raises(CheckpointError, match=why):
        merged(tiny_checkpoint, tmp_path / "b", [Lora(file)])


def test_what_overflows_half_precision_is_refused(tiny_checkpoint, tmp_path):
    file = lora(tmp_path / "l.safetensors")
    with pytest.raises(CheckpointError, match="larger than fp16 can hold"):
        merged(tiny_checkpoint, tmp_path / "b", [Lora(file, 1e5)], "fp16")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('{"transformer.alpha_pattern": {"x.*": 1}}', "is not supported"),
        ('{"transformer.fan_in_fan_out": true}', "is not supported"),
        ('{"transformer.use_dora": true}', "holds no magnitude"),
        ("[]", "is not supported"),
        ("no json", "is not supported"),
        ('{"transformer.lora_alpha": 1' + "0" * 400 + "}", "is not supported"),
    ],
)
def test_metadata_that_cannot_be_followed_is_refused(tiny_checkpoint, tmp_path, said, why):
    file = lora(tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": said})
    with pytest.raises(CheckpointError, match=why):
        merged(tiny_checkpoint, tmp_path / "b", [Lora(file)])


@pytest.mark.parametrize("prefix", ["", "text_model."])  # as checkpoints of transformers 5 and 4 name CLIP's weights
def test_the_patch_of_a_text_encoder_reaches_the_model_whatever_its_names(sdxl_checkpoint, tmp_path, prefix):
    module, folder = "encoder.layers.0.self_attn.q_proj", tmp_path / "text_encoder"
    tensors = {
        f"text_encoder.text_model.{module}.lora_A.weight": torch.ones(2, 16),
        f"text_encoder.text_model.{module}.lora_B.weight": torch.ones(16, 2),
    }
    save_file(tensors, tmp_path / "l.safetensors")
    shutil.copytree(sdxl_checkpoint / "text_encoder", folder)
    stored = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("text_model."): value for name, value in stored.items()}
    save_file({prefix + n: v for n, v in bare.items()}, folder / "model.safetensors", {"format": "pt"})
    table = {"text_encoder": headers.read(folder / "model.safetensors", "text_encoder/model.safetensors")}
    merge([Lora(tmp_path / "l.safetensors")], table, {"text_encoder": "fp32"}, tmp_path)
    graph = sdxl.text_encoder(json.loads((folder / "config.json").read_text()))
    model = graph.load(str(folder))
    apply_patch(model, graph, folder)
    found = next(v for n, v in model.state_dict().items() if n.endswith(f"{module}.weight"))
    assert torch.allclose(found, bare[f"{module}.weight"] + 2, atol=1e-5)


def test_the_float32_twin_has_the_patch(tiny_checkpoint, tmp_path):
    merged(tiny_checkpoint, tmp_path / "b", [Lora(lora(tmp_path / "l.safetensors"), 0.1)], "bf16")
    (tmp_path / "twin").mkdir()
    shutil.copy(tiny_checkpoint / "transformer/config.json", tmp_path / "b/transformer")
    config = json.loads((tmp_path / "b/transformer/config.json").read_text())
    path = write_twin(sd3.transformer(config), tmp_path / "b", tmp_path / "twin")
    patch = load_file(tmp_path / "b/transformer" / PATCH)[f"{MODULE}.weight"].float().numpy()
    found = [v.const_value for n, v in ir.load(path).graph.initializers.items() if n.endswith(f"{MODULE}.weight")]
    assert len(found) == 1
    assert np.array_equal(found[0].numpy(), patch)


@pytest.mark.slow
def test_what_a_bundle_is_compared_with_in_fp32_has_the_lora_merged(tiny_checkpoint, tmp_path):
    files = [Lora(lora(tmp_path / "l.safetensors"), 0.5)]
    made = export(tiny_checkpoint, tmp_path / "b", precision="fp16", loras=files, parity=False)
    exact = merged(tiny_checkpoint, tmp_path / "exact", files)
    rounded = load_file(tmp_path / "b/transformer" / PATCH)
    for name, source, expected in (("full", tiny_checkpoint, exact), ("twin", None, rounded)):
        out = write_bundle(tmp_path / "b", made, tmp_path / name, source, files)
        found = load_file(out / "transformer" / PATCH)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key].float()) for key in found)
        content = reader.verify(out).manifest
        assert f"transformer/{PATCH}" in content.components["transformer"].weights
        assert {component.precision for component in content.components.values()} == {"fp32"}
