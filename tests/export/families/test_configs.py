"""Settings of a config that change the picture are read, or refused by their name."""

import inspect
import json
import shutil

import diffusers
import pytest

from segue.errors import CheckpointError
from segue.export.export import export
from segue.export.families.configs import KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_settings_are_those_of_diffusers(name):
    """A new release with another setting fails here, instead of drawing another picture."""
    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert set(KNOWN[name]) == set(signature) - {"self"}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vae/config.json", {"latents_mean": [0.1] * 4, "latents_std": [0.9] * 4}, "vae/config.json sets latents_mean"),
        ("unet/config.json", {"in_channels": 9}, "unet/config.json has in_channels 9"),
        ("unet/config.json", {"out_channels": 8}, "unet/config.json has out_channels 8"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "unet/config.json sets class_embed_type"),
        ("unet/config.json", {"addition_embed_type": "text"}, "unet/config.json sets addition_embed_type"),
        ("unet/config.json", {"encoder_hid_dim": 8}, "unet/config.json sets encoder_hid_dim"),
        ("unet/config.json", {"sample_size": [16, 24]}, "unet/config.json has sample_size"),
        ("unet/config.json", {"a_setting_of_tomorrow": 1}, "unet/config.json sets a_setting_of_tomorrow"),
        ("vae/config.json", {"a_setting_of_tomorrow": 1}, "vae/config.json sets a_setting_of_tomorrow"),
        ("scheduler/scheduler_config.json", {"steps_offset": 9}, "steps_offset"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "sets use_karras_sigmas"),
    ],
)
def test_what_changes_an_sdxl_picture_and_is_not_read_is_refused_by_its_name(
    file, change, message, sdxl_checkpoint, tmp_path
):
    made = tmp_path / "checkpoint"
    shutil.copytree(sdxl_checkpoint, made)
    path = made / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        export(made, tmp_path / "bundle", parity=False)
    assert not (tmp_path / "bundle").exists()


def test_a_shift_that_sdxl_s_pipeline_never_adds_is_not_added(sdxl_checkpoint, tmp_path):
    from segue.export.checkpoint.read import read, read_index
    from segue.export.families.registry import find

    made = tmp_path / "checkpoint"
    shutil.copytree(sdxl_checkpoint, made)
    path = made / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift_factor": 0.2}))
    family = find(read_index(made))
    assert family.facts(read(made, family.folders)).latents.shift == 0
