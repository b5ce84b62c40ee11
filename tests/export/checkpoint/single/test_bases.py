"""The bases that ship with Segue: configs of published models, and CLIP's vocabulary."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from segue.commands.export import export as command
from segue.errors import CheckpointError
from segue.export.checkpoint.headers import Tensor
from segue.export.checkpoint.single.bases import names, usual, write_base
from segue.export.checkpoint.single.layout import SD3, SDXL
from segue.export.checkpoint.single.stage import staged
from segue.export.families.registry import find
from support.single_files import save

CONFIGS = json.loads((Path(__file__).parents[4] / "benchmarks/configs/full_size.json").read_text())


@pytest.fixture(scope="module", params=names())
def base(request, tmp_path_factory):
    """Name and directory of a shipped base."""
    return request.param, write_base(request.param, tmp_path_factory.mktemp("base") / "base")


def test_the_family_accepts_each_base(base):
    index = json.loads((base[1] / "model_index.json").read_text())
    family = find(index)
    family.check(index)
    assert all((base[1] / folder / "config.json").is_file() for folder in family.folders)


def test_configs_are_those_of_the_full_size_models(base):
    name, root = base
    known = CONFIGS["sdxl" if name == "sdxl" else "sd3"]
    differs = {
        (folder, key)
        for folder, config in known.items()
        if folder != "text_encoder_3"
        for key, value in config.items()
        if json.loads((root / folder / "config.json").read_text())[key] != value
    }
    changed = {
        "sd3.5-medium": {"pos_embed_max_size"},
        "sd3.5-large": {"num_layers", "num_attention_heads", "caption_projection_dim"},
    }
    assert differs == {("transformer", key) for key in changed.get(name, ())}


def test_the_vocabulary_is_clips(base):
    from transformers import CLIPTokenizer

    first, second = (CLIPTokenizer.from_pretrained(str(base[1] / f)) for f in ("tokenizer", "tokenizer_2"))
    assert len(first) == len(second) == 49408
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]  # as CLIP's README prints
    assert first("hello world!").input_ids == [49406, 3306, 1002, 256, 49407]
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)
    assert first.model_max_length == 77


@pytest.mark.parametrize(
    ("pipeline", "names", "width", "found"),
    [
        (SDXL, ["model.diffusion_model.input_blocks.0.0.weight"], 320, "sdxl"),
        (SDXL, ["conv_in.weight"], 320, "sdxl"),
        (SDXL, ["conv_in.weight"], 16, ""),
        (SD3, ["model.diffusion_model.x_embedder.proj.weight"], 1536, "sd3-medium"),
        (SD3, ["x_embedder.proj.weight", "joint_blocks.0.x_block.attn2.qkv.weight"], 1536, "sd3.5-medium"),
        (SD3, ["pos_embed.proj.weight", "transformer_blocks.0.attn2.to_q.weight"], 1536, "sd3.5-medium"),
        (SD3, ["model.diffusion_model.x_embedder.proj.weight"], 2432, "sd3.5-large"),
    ],
)
def test_the_width_of_the_first_layer_tells_the_base(pipeline, names, width, found):
    table = {name: Tensor(name, "f", 8, 2, "F16", (width, 4)) for name in names}
    assert usual(pipeline, table) == found


def test_a_denoiser_alone_is_told_to_take_a_whole_checkpoint(tmp_path):
    state = {"conv_in.weight": torch.zeros(320, 4, 3, 3), "add_embedding.linear_1.weight": torch.zeros(1, 1)}
    state["down_blocks.0.resnets.0.conv1.weight"] = torch.zeros(1, 1)
    file = save(tmp_path / "unet.safetensors", state)
    with (
        pytest.raises(CheckpointError, match="lacks text_encoder, text_encoder_2, vae, and the base sdxl") as caught,
        staged(str(file)),
    ):
        pass
    words = shlex.split(re.search(r"segue (export .*)", str(caught.value))[1])
    options = command.make_context("export", words[1:], resilient_parsing=True).params
    assert options["base"] == "hf:stabilityai/stable-diffusion-xl-base-1.0"
