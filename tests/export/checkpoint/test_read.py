"""What is read of a checkpoint directory, and what is refused."""

import json
import os
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import segue
from segue.errors import CheckpointError
from segue.export.checkpoint import read as checkpoint
from segue.export.families.modules import text_encoder
from segue.export.families.registry import find
from segue.export.families.sd3 import graphs
from segue.export.graphs import trace

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read(root):
    family = find(checkpoint.read_index(root))
    found = checkpoint.read(root, (*family.folders, *family.optional))
    family.check(found.index)
    family.facts(found)
    return found


def test_pickles_beside_safetensors_are_left_out(copy):
    (copy / "vae/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    (copy / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    assert [f for f in read(copy).files if f.startswith("vae/")] == ["vae/config.json", f"vae/{WEIGHTS}"]


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["FluxPipeline", ["FluxPipeline"]])
def test_another_pipeline_is_refused(copy, name):
    edit(copy / "model_index.json", _class_name=name)
    with pytest.raises(CheckpointError, match=r"FluxPipeline.*; Segue exports StableDiffusion3Pipeline"):
        read(copy)


def test_a_scheduler_that_the_runtime_does_not_follow_is_refused(copy):
    edit(copy / "scheduler/scheduler_config.json", use_karras_sigmas=True)
    with pytest.raises(CheckpointError, match="use_karras_sigmas to True"):
        read(copy)


def test_text_that_diffusers_would_crop_silently_is_refused(copy):
    edit(copy / "transformer/config.json", joint_attention_dim=39)
    with pytest.raises(CheckpointError, match="joint_attention_dim 39; the other parts need >= 40"):
        read(copy)


def test_a_component_that_leaves_the_directory_is_refused(copy):
    edit(copy / "model_index.json", **{"../vae": ["diffusers", "AutoencoderKL"]})
    with pytest.raises(CheckpointError, match=r"names the component '\.\./vae'"):
        read(copy)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "model.bin", 3, ["a"], {}, None])
def test_a_shard_that_leaves_its_directory_is_refused(copy, shard):
    path = copy / "vae" / WEIGHTS
    path.rename(copy / "vae/a.safetensors")
    table = {"a": "a.safetensors", "b": shard, "c": "a.safetensors"}
    (copy / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(CheckpointError, match="names the shard"):
        read(copy)


def test_a_missing_shard_is_named(copy):
    (copy / "vae" / WEIGHTS).unlink()
    (copy / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names a\.safetensors, which is missing"):
        read(copy)


@pytest.mark.parametrize(
    "content",
    [
        *('{"t5": 1}', '{"steps": "4"}', '{"steps": -4}', '{"steps": 0}', '{"guidance": true}'),
        *(
            '{"guidance": 1e999}',
            '{"guidance": NaN}',
            '{"maximum_size": 0}',
            '{"maximum_size": 8}',
            '{"t5_tokens": -1}',
            '{"sigmas": 1.0}',
            '{"sigmas": [true]}',
        ),
        *("[]", "{", '{"source": null}', f'{{"steps": 1{"0" * 400}}}'),
    ],
)
def test_a_wrong_segue_json_is_refused(copy, content):
    (copy / "segue.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"segue\.json"):
        read(copy)


def test_the_settings_that_the_documentation_shows_are_the_defaults(copy):
    page = (Path(segue.__file__).parent / "docs/guide/export.md").read_text()
    (block,) = re.findall(r"^    (\{.*?\})$", page, re.MULTILINE | re.DOTALL)
    assert json.loads(block).keys() == {f.name for f in fields(checkpoint.Settings)}
    (copy / "segue.json").write_text(block)
    assert read(copy).settings == checkpoint.Settings()


def test_a_model_made_for_more_than_maximum_size_is_refused(copy):
    edit(copy / "segue.json", maximum_size=127)
    with pytest.raises(CheckpointError, match="maximum_size is 127, below the 128 pixels"):
        read(copy)


@pytest.mark.parametrize("key", ["patch_size", "sample_size", "in_channels", "pos_embed_max_size"])
@pytest.mark.parametrize("value", [0, -2, "2", 2.0, True, None, 10**30])
def test_a_transformer_size_that_is_no_positive_number_is_named(copy, key, value):
    edit(copy / "transformer/config.json", **{key: value})
    with pytest.raises(CheckpointError, match=f"has {key} "):
        read(copy)


@pytest.mark.parametrize("name", ["..", ".", "", "vae/inner", "absent"])
def test_an_index_names_folders_of_the_checkpoint_alone(copy, name):
    (copy / "vae/inner").mkdir()
    edit(copy / "model_index.json", **{name: ["diffusers", "AutoencoderKL"]})
    with pytest.raises(CheckpointError, match="no such directory"):
        read(copy)


@pytest.mark.parametrize("entry", ["x", ["diffusers"], [None], {"a": 1}, 3, [1, 2], ["a", "b", "c"]])
@pytest.mark.parametrize("name", ["text_encoder_3", "vae"])
def test_an_index_entry_that_is_no_library_and_class_is_named(copy, name, entry):
    edit(copy / "model_index.json", **{name: entry})
    with pytest.raises(CheckpointError, match=f"model_index.json gives {name}|no such directory"):
        read(copy)


@pytest.mark.parametrize("name", ["a:b.json", "a\\b.txt", "a\nb.md"])
def test_a_file_whose_name_a_bundle_does_not_carry_is_named(copy, name):
    (copy / "vae" / name).write_text("{}")
    with pytest.raises(CheckpointError, match="Rename or remove"):
        read(copy)


def test_a_pipe_in_place_of_a_config_is_refused(copy):
    (copy / "vae/config.json").unlink()
    os.mkfifo(copy / "vae/config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read(copy)


def test_without_segue_json_the_settings_state_nothing(copy):
    (copy / "segue.json").unlink()
    settings = read(copy).settings
    assert (settings.t5_tokens, settings.steps, settings.guidance, settings.licence) == (256, None, None, "unknown")


@pytest.mark.slow
def test_shards_are_pointed_into_each_by_its_own_offsets(make_checkpoint, tmp_path):
    import onnx_ir as ir

    root = make_checkpoint(shard_bytes=120_000)
    part = checkpoint.read_part(root, "transformer")
    assert len(part.weights) > 2
    (root / "transformer/model.onnx").unlink(missing_ok=True)
    written = trace.write(graphs.transformer(part.config), "fp32", part.tensors, root / "transformer/model.onnx")
    assert written.files == part.weights
    for value in ir.load(root / "transformer/model.onnx").graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            shard = load_file(root / "transformer" / value.const_value.location)
            stored = shard[value.name.removeprefix("model.")]
            assert torch.equal(torch.from_numpy(value.const_value.numpy().copy()), stored)


@pytest.mark.slow
def test_a_buffer_that_no_file_holds_goes_into_a_file_of_its_own(copy):
    path = copy / "transformer" / WEIGHTS
    tensors = load_file(path)
    table = tensors.pop("pos_embed.pos_embed")
    save_file(tensors, path)
    part = checkpoint.read_part(copy, "transformer")
    written = trace.write(graphs.transformer(part.config), "fp32", part.tensors, copy / "transformer/model.onnx")
    assert written.buffers == "transformer/buffers.safetensors"
    made = load_file(copy / written.buffers)["pos_embed.pos_embed"]
    assert made.shape == table.shape
    # The fixture shifts every parameter, but not buffers: the stored table is diffusers' own.
    assert torch.allclose(made, table, atol=1e-6)


@pytest.mark.slow
def test_a_missing_weight_is_named(tiny_checkpoint, tmp_path):
    part = checkpoint.read_part(tiny_checkpoint, "text_encoder")
    tensors = {k: v for k, v in part.tensors.items() if k != "text_projection.weight"}
    with pytest.raises(CheckpointError, match=r"needs the tensor 'text_projection\.weight'"):
        trace.write(text_encoder("text_encoder", part.config), "fp32", tensors, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_the_config_are_refused(tiny_checkpoint, tmp_path):
    part = checkpoint.read_part(tiny_checkpoint, "text_encoder")
    graph = text_encoder("text_encoder", part.config | {"projection_dim": 8})
    with pytest.raises(CheckpointError, match=r"'text_projection.weight' as F32 \[16, 16\].*F32 \[8, 16\]"):
        trace.write(graph, "fp32", part.tensors, tmp_path / "model.onnx")


def test_a_name_of_the_hub_without_its_prefix_is_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"Did you mean hf:stabilityai/sd-turbo\?"):
        checkpoint.read_index(Path("stabilityai/sd-turbo"))
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at nowhere\. Give a directory"):
        checkpoint.read_index(Path("nowhere"))
