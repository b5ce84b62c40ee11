"""Single files of FLUX.2-klein and Z-Image draw what diffusers draws with the checkpoint that the file was made of."""

import re
import shlex

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file

from segue.commands.export import export as command
from segue.errors import CheckpointError
from segue.export.checkpoint.single.open import read_staged
from segue.export.checkpoint.single.stage import staged
from segue.export.checks import oracle
from segue.export.checks.oracle import Case
from segue.export.export import export
from segue.runtime.bundle import reader
from support.single_files import UNET as DENOISER
from support.single_files import autoencoder, flux2, read_weights, save, zimage

FOLDERS = ("text_encoder", "transformer", "vae")
QWEN3 = "text_encoders.qwen3_4b.transformer."


def whole_zimage(checkpoint):
    """Return all tensors of a Z-Image as ComfyUI saves a whole model."""
    text = read_weights(checkpoint / "text_encoder")
    made = {DENOISER + name: t for name, t in zimage(read_weights(checkpoint / "transformer")).items()}
    made |= {f"{QWEN3}model.{name.removeprefix('model.')}": t for name, t in text.items()}
    return made | {f"vae.{name}": t for name, t in autoencoder(read_weights(checkpoint / "vae")).items()}


@pytest.fixture(scope="module")
def files(klein_checkpoint, zimage_checkpoint, tmp_path_factory):
    """Single files of both models by what they hold."""
    root = tmp_path_factory.mktemp("files")
    klein = flux2(read_weights(klein_checkpoint / "transformer"))
    theirs = read_weights(zimage_checkpoint / "transformer")
    made = {
        "flux-2-klein-4b": klein,
        "klein-comfyui": {DENOISER + name: tensor for name, tensor in klein.items()},
        "klein-diffusers": read_weights(klein_checkpoint / "transformer"),
        "z_image_turbo_bf16": zimage(theirs) | {"norm_final.weight": torch.ones(48)},
        "z-image-diffusers": theirs,
        "z-image-diffusers-prefixed": {DENOISER + name: tensor for name, tensor in theirs.items()},
        "z-image-whole": whole_zimage(zimage_checkpoint),
    }
    return {name: save(root / f"{name}.safetensors", state) for name, state in made.items()}


def test_the_names_in_the_files_are_those_that_diffusers_converts(klein_checkpoint, zimage_checkpoint):
    convert = {
        klein_checkpoint: (flux2, convert_flux2_transformer_checkpoint_to_diffusers),
        zimage_checkpoint: (zimage, convert_z_image_transformer_checkpoint_to_diffusers),
    }
    for checkpoint, (invert, again) in convert.items():
        state = read_weights(checkpoint / "transformer")
        found = again(invert(state))
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["flux-2-klein-4b", "klein-comfyui", "klein-diffusers"])
def test_a_transformer_of_klein_takes_the_rest_from_its_base(files, klein_checkpoint, name):
    check_denoiser(files[name], klein_checkpoint)


@pytest.mark.parametrize("name", ["z_image_turbo_bf16", "z-image-diffusers", "z-image-diffusers-prefixed"])
def test_a_transformer_of_zimage_takes_the_rest_from_its_base(files, zimage_checkpoint, name):
    check_denoiser(files[name], zimage_checkpoint)


def check_denoiser(file, checkpoint):
    with staged(str(file), str(checkpoint)) as source:
        found = read_staged(source.root, FOLDERS, source.single, source.title)
    theirs = read_staged(checkpoint, FOLDERS, "", "")
    assert found.parts["transformer"].weights == (file.name,)
    assert {n: t.shape for n, t in found.parts["transformer"].tensors.items()} == {
        n: t.shape for n, t in theirs.parts["transformer"].tensors.items()
    }
    for folder in ("text_encoder", "vae"):
        assert found.parts[folder].weights == theirs.parts[folder].weights


def test_a_whole_zimage_needs_no_weights_of_its_base(files, zimage_checkpoint, tmp_path):
    import shutil

    base = shutil.copytree(zimage_checkpoint, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors*"))
    told = []
    with staged(str(files["z-image-whole"]), str(base)) as source:
        found = read_staged(source.root, FOLDERS, source.single, source.title, told.append)
    assert told == []
    assert {part.weights for part in found.parts.values()} == {("z-image-whole.safetensors",)}
    theirs = read_weights(zimage_checkpoint / "text_encoder")
    assert {name.removeprefix("model.") for name in found.parts["text_encoder"].tensors} == theirs.keys()


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("flux-2-klein-4b", "hf:black-forest-labs/FLUX.2-klein-4B"),
        ("klein-comfyui", "hf:black-forest-labs/FLUX.2-klein-4B"),
        ("z_image_turbo_bf16", "hf:Tongyi-MAI/Z-Image-Turbo"),
    ],
)
def test_without_a_base_the_error_prints_a_command_that_names_one(files, name, base):
    with pytest.raises(CheckpointError, match="neither configs nor tokenizers") as caught, staged(str(files[name])):
        pass
    words = shlex.split(re.search(r"segue (export .*)", str(caught.value))[1])
    options = command.make_context("export", words[1:], resilient_parsing=True).params
    assert (options["checkpoint"], options["base"]) == (str(files[name]), base)


def test_the_width_of_the_first_layer_tells_the_larger_klein(tmp_path):
    state = {
        "double_stream_modulation_img.lin.weight": torch.zeros(1, 1), "img_in.weight": torch.zeros(4096, 1),
        "double_blocks.0.img_attn.qkv.weight": torch.zeros(1, 1),
    }  # fmt: skip
    file = save(tmp_path / "f.safetensors", state)
    with pytest.raises(CheckpointError, match=r"--base hf:black-forest-labs/FLUX\.2-klein-9B"), staged(str(file)):
        pass


def test_a_base_of_another_model_is_refused(files, klein_checkpoint):
    with (
        pytest.raises(CheckpointError, match=r"weights of Z-Image, and .* is a 'Flux2KleinPipeline'"),
        staged(str(files["z-image-diffusers"]), str(klein_checkpoint)),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("flux-2-klein-4b", 4), ("z-image-whole", 8)])
def test_pictures_are_those_of_the_checkpoint(
    files, name, steps, klein_checkpoint, zimage_checkpoint, tmp_path, monkeypatch
):
    checkpoint = klein_checkpoint if "klein" in name else zimage_checkpoint
    with staged(str(files[name]), str(checkpoint)) as source:
        export(source.root, tmp_path / "b", single=source.single, title=source.title)
    content = reader.read(tmp_path / "b").manifest
    assert content.provenance.single_file == f"{name}.safetensors"
    assert {p.component for p in content.parity if p.relative_l2 is not None} >= {"text_encoder", "transformer"}
    assert all(p.relative_l2 <= p.gate == 1e-4 for p in content.parity)
    if "klein" in name:  # the last modulation, whose halves are swapped
        assert load_file(tmp_path / "b/transformer/single_patch.safetensors").keys() == {"norm_out.linear.weight"}
    real = oracle.load_pipeline
    monkeypatch.setattr(oracle, "load_pipeline", lambda path: real(checkpoint))
    (found,) = oracle.compare(tmp_path / "b", [Case("a red heart", (64, 96), 1.0, steps=steps)])
    assert found.psnr >= 60
    assert found.latents <= 1e-4
