"""Bundles of tiny single files draw what diffusers draws with the checkpoint that the file was made of."""

import hashlib
import json
import re
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.commands.export import export as command
from segue.export.checkpoint.defaults import Asked
from segue.export.checkpoint.single.stage import staged
from segue.export.checks import oracle
from segue.export.checks.oracle import Case
from segue.export.export import export
from segue.export.unpack import unpack
from segue.runtime.bundle import reader
from segue.runtime.pipeline import open_model
from support.checkpoints import build_sd3
from support.single_files import save, unet, with_identity, write_single

pytestmark = pytest.mark.slow

GATE = 60.0  # dB
CASES = [Case("a red heart", (128, 128), 2.0, steps=3), Case("a red dog", (96, 64), 1.0, steps=2)]


def made_of(file, base, out, **options):
    """Export a single file with its base, and return what was told."""
    told = []

    def progress(event):
        if event.stage == "note":
            told.append(event.text)

    with staged(str(file), str(base)) as source:
        export(source.root, out, single=source.single, title=source.title, progress=progress, **options)
    return told


def check(bundle, checkpoint, monkeypatch, cases=CASES):
    """Compare with diffusers' pipeline of `checkpoint`, which never saw the single file."""
    real = oracle.load_pipeline
    monkeypatch.setattr(oracle, "load_pipeline", lambda path: real(checkpoint))
    found = list(oracle.compare(bundle, cases))
    assert len(found) == len(cases)
    assert min(d.psnr for d in found) >= GATE, found
    assert max(d.latents for d in found) < 1e-4, found


@pytest.fixture(scope="module")
def xl(sdxl_checkpoint, tmp_path_factory):
    """A single file of SDXL, and its bundle, parity checked."""
    root = tmp_path_factory.mktemp("xl")
    file = write_single(sdxl_checkpoint, root / "tiny.safetensors")
    told = made_of(file, sdxl_checkpoint, root / "bundle")
    assert not any("not checked" in text for text in told)
    return file, root / "bundle"


def sd35(root):
    """Write a tiny SD3.5-Medium: some blocks with two attentions, and norms of q and k."""
    from diffusers import SD3Transformer2DModel

    with_identity(build_sd3(root))
    config = json.loads((root / "transformer/config.json").read_text())
    torch.manual_seed(5)
    changed = {"num_layers": 3, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}
    model = SD3Transformer2DModel.from_config(config | changed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    shutil.rmtree(root / "transformer")
    model.save_pretrained(root / "transformer")
    return root


def test_sdxl_draws_as_diffusers_does_with_the_checkpoint(xl, sdxl_checkpoint, monkeypatch):
    check(xl[1], sdxl_checkpoint, monkeypatch)


def test_every_graph_was_compared_with_diffusers_own_conversion(xl):
    content = reader.read(xl[1]).manifest
    weighted = {name for name, component in content.components.items() if component.weights}
    assert {p.component for p in content.parity if p.relative_l2 is not None} >= weighted
    assert all(p.relative_l2 < 1e-5 for p in content.parity)


@pytest.mark.parametrize("build", [lambda root: with_identity(build_sd3(root)), sd35], ids=["sd3", "sd3.5"])
def test_sd3_draws_as_diffusers_does_with_the_checkpoint(build, tmp_path, monkeypatch):
    checkpoint = build(tmp_path / "checkpoint")
    file = write_single(checkpoint, tmp_path / "tiny.safetensors")
    made_of(file, checkpoint, tmp_path / "b", parity=False, defaults=Asked(steps=4))
    check(tmp_path / "b", checkpoint, monkeypatch)
    # of the transformer the last two modulations, whose halves are swapped; of the first text encoder an identity
    assert load_file(tmp_path / "b/transformer/single_patch.safetensors").keys() == {
        f"{name}.{kind}"
        for name in ("norm_out.linear", f"transformer_blocks.{2 if build is sd35 else 1}.norm1_context.linear")
        for kind in ("weight", "bias")
    }
    assert load_file(tmp_path / "b/text_encoder/single_patch.safetensors").keys() == {"text_projection.weight"}


def test_the_bundle_holds_the_file_once_and_says_that_it_is_no_checkpoint(xl):
    file, bundle = xl
    content = reader.read(bundle).manifest
    assert content.provenance.single_file == "tiny.safetensors"
    assert content.provenance.source == "tiny"
    assert content.files["tiny.safetensors"].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    weights = {name for name in content.files if name.endswith(".safetensors")}
    assert weights == {"tiny.safetensors", "text_encoder_2/single_patch.safetensors"}
    assert {c.graph for c in content.components.values()} == {f"{name}.onnx" for name in content.components}
    # What a component reads is less than the file, and so is what the planner counts
    assert 0 < content.weight_bytes("vae_decoder") < content.weight_bytes("unet") < file.stat().st_size
    table = load_file(file)
    held = sum(t.nbytes for n, t in table.items() if n.startswith("model.diffusion_model."))
    assert content.weight_bytes("unet") == held


def test_unpack_gives_the_file_back_and_a_command_that_exports_it_again(xl, tmp_path):
    file, bundle = xl
    note = unpack(bundle, tmp_path / "out")
    assert (tmp_path / "out/tiny.safetensors").read_bytes() == file.read_bytes()
    words = shlex.split(re.search(r"segue (export .*)", note)[1])
    options = command.make_context("export", words[1:], resilient_parsing=True).params
    with staged(options["checkpoint"], options["base"]) as source:
        assert (source.root / "unet/config.json").is_file()


def test_a_file_in_fp16_stays_as_it_is_though_the_autoencoder_runs_in_fp32(sdxl_checkpoint, tmp_path, monkeypatch):
    whole = load_file(write_single(sdxl_checkpoint, tmp_path / "whole.safetensors"))
    file = save(tmp_path / "half.safetensors", {name: tensor.half() for name, tensor in whole.items()})
    told = made_of(file, sdxl_checkpoint, tmp_path / "b", parity=False)
    assert (tmp_path / "b/half.safetensors").read_bytes() == file.read_bytes()
    content = reader.read(tmp_path / "b").manifest
    assert {name: c.precision for name, c in content.components.items() if c.weights} == {
        "text_encoder": "fp16", "text_encoder_2": "fp16", "unet": "fp16", "vae_decoder": "fp32", "vae_encoder": "fp32",
    }  # fmt: skip
    assert not (tmp_path / "b/vae/single_patch.safetensors").exists()
    assert any("vae is written in fp32" in text for text in told)
    with open_model(tmp_path / "b") as model:
        assert model.generate("a red heart", steps=1, size=64).std() > 0


def test_narrowed_weights_keep_the_autoencoder_as_it_came(sdxl_checkpoint, tmp_path):
    file = write_single(sdxl_checkpoint, tmp_path / "whole.safetensors")
    made_of(file, sdxl_checkpoint, tmp_path / "b", parity=False, precision="fp16")
    whole = load_file(file)
    copied = load_file(tmp_path / "b/whole.safetensors")
    assert all(torch.equal(copied[name], tensor.half()) for name, tensor in whole.items())
    kept = load_file(tmp_path / "b/vae/single_patch.safetensors")
    theirs = load_file(sdxl_checkpoint / "vae/diffusion_pytorch_model.safetensors")
    assert kept.keys() == theirs.keys()
    assert all(torch.equal(kept[name], theirs[name]) for name in kept)


def test_a_published_unet_is_drawn_as_its_name_says(sdxl_checkpoint, tmp_path, monkeypatch):
    state = load_file(sdxl_checkpoint / "unet/diffusion_pytorch_model.safetensors")
    other = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in state.items()}
    file = save(tmp_path / "sdxl_lightning_4step_unet.safetensors", other)
    told = made_of(file, sdxl_checkpoint, tmp_path / "b", parity=False)
    content = reader.read(tmp_path / "b").manifest
    assert (content.sampler.steps, content.sampler.guidance) == (4, 0.0)
    assert content.sampler.noise.spacing == "trailing"
    assert any("sdxl_lightning_4step_unet" in text for text in told)
    assert content.components["unet"].weights == ("sdxl_lightning_4step_unet.safetensors",)
    assert content.components["vae_decoder"].graph == "vae/decoder.onnx"
    student = shutil.copytree(sdxl_checkpoint, tmp_path / "student")
    save_file(other, student / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    check(tmp_path / "b", student, monkeypatch, [Case("a red heart", (128, 128), 1.0, steps=4)])


def test_a_unet_in_its_original_names_draws_the_same(sdxl_checkpoint, tmp_path, monkeypatch):
    state = load_file(sdxl_checkpoint / "unet/diffusion_pytorch_model.safetensors")
    file = save(tmp_path / "unet_only.safetensors", unet(state, 1))
    made_of(file, sdxl_checkpoint, tmp_path / "b", parity=False, defaults=Asked(steps=3))
    check(tmp_path / "b", sdxl_checkpoint, monkeypatch, CASES[:1])
