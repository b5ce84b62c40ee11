"""Two experts: each takes its own LoRA file, and the four steps of such files split two and two."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.commands.terminal.option_types import Scaled
from segue.errors import CheckpointError
from segue.export.checkpoint import read
from segue.export.checkpoint.lora.merge import PATCH, Lora, merge
from segue.export.families.registry import find
from segue.runtime.sampling.motion import experts_of

EXPERTS = ("transformer", "transformer_2")
WEIGHT = "blocks.0.attn1.to_q.weight"
# The module in Wan's own layout, as LightX2V and ComfyUI publish it, and in diffusers'
STEMS = ("diffusion_model.blocks.0.self_attn.q", "transformer.blocks.0.attn1.to_q")


def lora(path, stem, seed):
    generator = torch.Generator().manual_seed(seed)
    names = ("lora_down", "lora_up") if "self_attn" in stem else ("lora_A", "lora_B")
    shapes = ((2, 48), (48, 2))
    tensors = {
        f"{stem}.{name}.weight": torch.randn(shape, generator=generator)
        for name, shape in zip(names, shapes, strict=True)
    }
    save_file(tensors, path)
    down, up = tensors.values()
    return up @ down


@pytest.mark.parametrize("stem", STEMS)
def test_each_expert_gets_the_file_that_names_it(wan_i2v_checkpoint, tmp_path, stem):
    changes = {name: lora(tmp_path / f"{name}.safetensors", stem, seed) for seed, name in enumerate(EXPERTS)}
    typed = [f"{tmp_path}/transformer.safetensors", f"transformer_2:{tmp_path}/transformer_2.safetensors=0.5"]
    loras = [Lora(*Scaled().convert(text, None, None)) for text in typed]
    bundle = tmp_path / "bundle"
    parts = {name: read.read_part(wan_i2v_checkpoint, name).tensors for name in EXPERTS}
    for name in EXPERTS:
        (bundle / name).mkdir(parents=True)
        for file in {tensor.file for tensor in parts[name].values()}:
            (bundle / file).symlink_to(wan_i2v_checkpoint / file)
    written = merge(loras, parts, dict.fromkeys(EXPERTS, "fp32"), bundle)
    assert written == {name: f"{name}/{PATCH}" for name in EXPERTS}
    for name, factor in zip(EXPERTS, (1.0, 0.5), strict=True):
        before = load_file(wan_i2v_checkpoint / name / "diffusion_pytorch_model.safetensors")[WEIGHT]
        after = load_file(bundle / name / PATCH)
        assert set(after) == {WEIGHT}
        assert torch.allclose(after[WEIGHT], before + factor * changes[name], atol=1e-5)


def test_four_steps_are_two_calls_of_each_expert(wan_i2v_checkpoint, tmp_path):
    found, family = checkpoint_with(wan_i2v_checkpoint, tmp_path, boundary_ratio=0.9)
    made = family.facts(found)
    assert made.video.motion.boundary == 0.9
    assert made.sampler.sigmas == (1.0, 0.75, 0.5, 0.25)
    assert experts_of(made.sampler, 2, made.video.motion.boundary) == [0, 0, 1, 1]


@pytest.mark.parametrize("boundary", [None, 1.5, "0.9"])
def test_two_experts_need_a_boundary(wan_i2v_checkpoint, tmp_path, boundary):
    found, family = checkpoint_with(wan_i2v_checkpoint, tmp_path, boundary_ratio=boundary)
    with pytest.raises(CheckpointError, match="boundary_ratio"):
        family.facts(found)


def checkpoint_with(source, folder, **index):
    """Return the checkpoint with other values in its index and four levels, and its family; nothing is copied."""
    for path in source.iterdir():
        if path.is_dir():
            (folder / path.name).symlink_to(path)
    said = json.loads((source / "model_index.json").read_text()) | index
    (folder / "model_index.json").write_text(json.dumps(said))
    settings = json.loads((source / "segue.json").read_text()) | {"sigmas": [1.0, 0.75, 0.5, 0.25]}
    (folder / "segue.json").write_text(json.dumps(settings))
    family = find(said)
    return read.read(folder, (*family.folders, *family.optional)), family
