"""A single file with its base, as a directory of links."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from segue.commands.export import export as command
from segue.errors import CheckpointError, UsageError
from segue.export.checkpoint.single.open import read_staged
from segue.export.checkpoint.single.stage import staged
from support.single_files import save, unet, write_single

FOLDERS = ("text_encoder", "text_encoder_2", "unet", "vae")


@pytest.fixture(scope="module")
def xl_file(sdxl_checkpoint, tmp_path_factory):
    """A whole tiny SDXL in one file."""
    return write_single(sdxl_checkpoint, tmp_path_factory.mktemp("single") / "tiny xl.safetensors")


@pytest.fixture
def bare_base(sdxl_checkpoint, tmp_path):
    """A base that has no weights."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(sdxl_checkpoint, tmp_path / "base", ignore=ignore)


def test_without_a_base_the_error_prints_a_command_that_names_one(xl_file):
    with pytest.raises(CheckpointError, match="neither configs nor tokenizers") as caught, staged(str(xl_file)):
        pass
    words = shlex.split(re.search(r"segue (export .*)", str(caught.value))[1])
    options = command.make_context("export", words[1:], resilient_parsing=True).params
    assert options["checkpoint"] == str(xl_file)
    assert options["base"] == "hf:stabilityai/stable-diffusion-xl-base-1.0"


def test_a_base_without_weights_is_enough_for_a_whole_file(xl_file, bare_base, sdxl_checkpoint):
    told = []
    with staged(str(xl_file), str(bare_base)) as source:
        found = read_staged(source.root, FOLDERS, source.single, source.title, told.append)
        plain = read_staged(sdxl_checkpoint, FOLDERS, "", "")
        assert source.single == "tiny xl.safetensors"
        assert source.title == "tiny xl"
        assert {p.weights for p in found.parts.values()} == {("tiny xl.safetensors",)}
        for folder, part in plain.parts.items():
            stems = {name.removeprefix("text_model.") for name in part.tensors if "position_ids" not in name}
            assert {name.removeprefix("text_model.") for name in found.parts[folder].tensors} == stems, folder
    assert told == []
    assert not source.root.exists()


def test_how_the_base_draws_and_whose_it_is_says_nothing_about_the_file(xl_file, sdxl_checkpoint):
    with staged(str(xl_file), str(sdxl_checkpoint)) as source:
        found = read_staged(source.root, FOLDERS, source.single, source.title)
    assert json.loads((sdxl_checkpoint / "segue.json").read_text())["steps"] == 4
    assert found.settings.steps is None
    assert found.settings.guidance is None
    assert found.settings.source == "unknown"


def test_a_file_with_the_unet_alone_takes_the_rest_from_its_base(sdxl_checkpoint, tmp_path):
    ours = load_file(sdxl_checkpoint / "unet/diffusion_pytorch_model.safetensors")
    files = {
        "sdxl_lightning_4step_unet": ours,
        "original": {f"model.diffusion_model.{name}": tensor for name, tensor in unet(ours, 1).items()},
        "without_prefix": unet(ours, 1),
    }
    for name, state in files.items():
        path = save(tmp_path / f"{name}.safetensors", state)
        with staged(str(path), str(sdxl_checkpoint)) as source:
            found = read_staged(source.root, FOLDERS, source.single, source.title)
        weights = {folder: part.weights for folder, part in found.parts.items()}
        assert weights["unet"] == (f"{name}.safetensors",), name
        assert weights["vae"] == ("vae/diffusion_pytorch_model.safetensors",)
        assert found.parts["unet"].tensors.keys() == ours.keys()
        assert "unet/diffusion_pytorch_model.safetensors" not in found.files


def test_a_unet_that_takes_guidance_as_an_input_changes_its_config(sdxl_checkpoint, tmp_path):
    import torch

    ours = load_file(sdxl_checkpoint / "unet/diffusion_pytorch_model.safetensors")
    path = save(tmp_path / "lcm_unet.safetensors", ours | {"time_embedding.cond_proj.weight": torch.zeros(16, 12)})
    with staged(str(path), str(sdxl_checkpoint)) as source:
        found = read_staged(source.root, FOLDERS, source.single, source.title)
        assert found.parts["unet"].config["time_cond_proj_dim"] == 12
    assert json.loads((sdxl_checkpoint / "unet/config.json").read_text())["time_cond_proj_dim"] is None


def test_a_layer_of_guidance_without_a_size_leaves_the_config(sdxl_checkpoint, tmp_path):
    import torch

    ours = load_file(sdxl_checkpoint / "unet/diffusion_pytorch_model.safetensors")
    path = save(tmp_path / "unet.safetensors", ours | {"time_embedding.cond_proj.weight": torch.zeros(())})
    with staged(str(path), str(sdxl_checkpoint)) as source:
        config = json.loads((source.root / "unet/config.json").read_text())
    assert config["time_cond_proj_dim"] is None


def test_a_file_behind_a_link_keeps_the_name_of_the_link(xl_file, sdxl_checkpoint, tmp_path):
    blob = tmp_path / "blobs/0123abcd"
    blob.parent.mkdir()
    shutil.copyfile(xl_file, blob)
    (tmp_path / "model.safetensors").symlink_to(blob)
    with staged(str(tmp_path / "model.safetensors"), str(sdxl_checkpoint)) as source:
        assert source.single == "model.safetensors"
        assert (source.root / source.single).read_bytes() == xl_file.read_bytes()


def test_a_file_that_says_v_prediction_is_played_so(xl_file, bare_base, tmp_path):
    import torch

    path = save(tmp_path / "v.safetensors", load_file(xl_file) | {"v_pred": torch.zeros(0)})
    with staged(str(path), str(bare_base)) as source:
        assert read_staged(source.root, FOLDERS, source.single, source.title).settings.prediction == "v_prediction"
    path = save(tmp_path / "z.safetensors", load_file(path) | {"ztsnr": torch.zeros(0)})
    with staged(str(path), str(bare_base)) as source, pytest.raises(CheckpointError, match="rescale_betas_zero_snr"):
        read_staged(source.root, FOLDERS, source.single, source.title)


def test_a_base_of_another_model_is_refused(xl_file, tiny_checkpoint):
    with (
        pytest.raises(CheckpointError, match=r"Stable Diffusion XL, and .* is a 'StableDiffusion3Pipeline'"),
        staged(str(xl_file), str(tiny_checkpoint)),
    ):
        pass


def test_a_base_without_a_single_file_is_refused(tiny_checkpoint):
    with pytest.raises(UsageError, match="--base belongs to a single file"), staged(str(tiny_checkpoint), "base"):
        pass


def test_a_variant_of_a_base_without_weights_is_refused(xl_file):
    with pytest.raises(UsageError, match="the base sdxl has none"), staged(str(xl_file), "sdxl", "fp16"):
        pass


def test_a_file_that_lacks_tensors_is_refused(xl_file, bare_base, tmp_path):
    state = load_file(xl_file)
    del state["first_stage_model.decoder.conv_in.weight"], state["model.diffusion_model.label_emb.0.2.weight"]
    save_file(state, tmp_path / "less.safetensors")
    with (
        staged(str(tmp_path / "less.safetensors"), str(bare_base)) as source,
        pytest.raises(CheckpointError, match="cannot be converted to unet by diffusers"),
    ):
        read_staged(source.root, FOLDERS, source.single, source.title)


def test_the_command_refuses_without_a_traceback(xl_file, tmp_path):
    words = [sys.executable, "-m", "segue.cli", "export", str(xl_file), "-o", str(tmp_path / "b")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 4
    assert "--base hf:stabilityai/stable-diffusion-xl-base-1.0" in done.stderr
    assert "Traceback" not in done.stderr
