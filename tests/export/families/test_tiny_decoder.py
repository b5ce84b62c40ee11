"""The small decoder of previews: diffusers' AutoencoderTiny in a folder of the checkpoint."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from segue.engines.ort.engine import OrtEngine
from segue.errors import CheckpointError
from segue.export.checkpoint import read
from segue.export.checkpoint.single.stage import staged, with_decoder
from segue.export.export import export
from segue.export.families.modules import tiny_decoder
from segue.export.families.registry import families
from segue.export.graphs import trace
from segue.runtime.bundle.families import PREVIEW, TINY
from segue.runtime.diagnostics.difference import relative_l2
from segue.runtime.pipeline import open_model
from segue.runtime.request import Request
from segue.runtime.sampling.latents import to_bytes


def write_tiny(folder, channels=8, stages=4, **changed):
    """Write an AutoencoderTiny of random weights, as its publisher does."""
    torch.manual_seed(3)
    model = AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=(8,) * stages, decoder_block_out_channels=(8,) * stages,
        num_encoder_blocks=(1,) * stages, num_decoder_blocks=(1,) * stages, **changed,
    )  # fmt: skip
    model.save_pretrained(folder)
    return model.eval()


def decoded(model, latents):
    """Return what diffusers' pipelines make of latents with this autoencoder."""
    with torch.inference_mode():
        scaled = torch.from_numpy(latents) / model.config.scaling_factor + model.config.shift_factor
        return model.decode(scaled).sample.numpy()


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of `tiny_checkpoint` with the small decoder."""
    root = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, root)
    write_tiny(root / TINY)
    return root


@pytest.mark.parametrize("changed", [{}, {"scaling_factor": 1.5, "shift_factor": 0.1}, {"upsample_fn": "bilinear"}])
def test_the_graph_is_diffusers_decoder(changed, tmp_path):
    model = write_tiny(tmp_path / TINY, **changed)
    part = read.read_part(tmp_path, TINY)
    trace.write(tiny_decoder(part.config), "fp32", part.tensors, tmp_path / TINY / "decoder.onnx")
    rng = np.random.default_rng(0)
    with OrtEngine(tmp_path / TINY / "decoder.onnx") as engine:
        for shape in ((1, 8, 10, 6), (3, 8, 5, 16)):
            latents = 2 * rng.standard_normal(shape, dtype=np.float32)
            assert relative_l2(engine.run({"latents": latents})["pixels"], decoded(model, latents)) <= 1e-4


def test_every_family_of_pictures_takes_it_beside_its_own_folders(checkpoint):
    for family in families().values():
        assert (TINY in family.optional) is not family.row.moving
    family = families()["StableDiffusion3Pipeline"]
    found = read.read(checkpoint, (*family.folders, *family.optional))
    assert found.parts[TINY].config["latent_channels"] == 8
    assert f"{TINY}/config.json" in found.files
    assert read.left_out(found) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latent_channels": 4}, "decodes 4 channels at 8 pixels to 3 colours; the model has 8 channels at 8 pixels"),
        ({"upsampling_scaling_factor": 4}, "8 channels at 64 pixels"),
        ({"upsampling_scaling_factor": 10**9}, "8 channels at 0 pixels"),
        ({"out_channels": 4}, "to 4 colours"),
        ({"_class_name": "AutoencoderKL"}, "is of 'AutoencoderKL'; previews take an AutoencoderTiny. Remove"),
        ({"a_setting_of_tomorrow": 1}, "vae_tiny/config.json sets a_setting_of_tomorrow"),
        ({"decoder_block_out_channels": 8}, "cannot be used: TypeError"),
    ],
)
def test_one_of_another_model_is_refused_before_any_work(change, said, checkpoint, tmp_path):
    path = checkpoint / TINY / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=said):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_directory_of_its_own_is_put_beside_the_checkpoint(checkpoint, tmp_path):
    (checkpoint / TINY).rename(tmp_path / "taesd3")
    (checkpoint / "vae").rename(tmp_path / "elsewhere")
    (checkpoint / "vae").symlink_to(tmp_path / "elsewhere")
    with staged(str(checkpoint)) as plain, with_decoder(plain, tmp_path / "taesd3") as source:
        family = families()["StableDiffusion3Pipeline"]
        found = read.read(source.root, (*family.folders, *family.optional))
        assert found.parts[TINY].config["_class_name"] == "AutoencoderTiny"
        assert found.parts["vae"].tensors == read.read_part(checkpoint, "vae").tensors
        assert (source.title, source.single) == ("checkpoint", "")
    with staged(str(checkpoint)) as plain, with_decoder(plain, None) as source:
        assert source is plain
    with (
        pytest.raises(CheckpointError, match=r"has no config\.json\. Give the directory"),
        staged(str(checkpoint)) as plain,
        with_decoder(plain, tmp_path),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["keep", "fp16"])
def test_a_bundle_with_it_shows_what_diffusers_would_decode(precision, checkpoint, tmp_path):
    made = export(checkpoint, tmp_path / "bundle", precision=precision)
    figures = [one.relative_l2 for one in made.parity if one.component == PREVIEW]
    assert len(figures) == 2
    assert max(figures) <= {"keep": 1e-4, "fp16": 5e-3}[precision]
    model = AutoencoderTiny.from_pretrained(checkpoint / TINY).eval()
    seen = []
    with open_model(tmp_path / "bundle") as opened:
        plain = opened.render(Request("a red heart", steps=3))
        opened.render(
            Request("a red heart", steps=3), on_step=lambda *_: seen.append((opened.preview(), opened.estimate()))
        )
        assert np.array_equal(opened.render(Request("a red heart", steps=3)).images, plain.images)
    assert len(seen) == 3
    for shown, estimate in seen:
        expected = to_bytes(decoded(model, estimate)).astype(int)
        assert abs(shown.astype(int) - expected).max() <= (1 if precision == "keep" else 3)
