"""What is said of a checkpoint that Segue does not read; each command is run as printed."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.errors import CheckpointError
from segue.export.checkpoint import hub
from segue.export.checkpoint import read as checkpoint
from segue.export.families.registry import find

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 12345\n"
FAMILIES = {"tiny_checkpoint": "transformer", "sdxl_checkpoint": "unet", "longcat_checkpoint": "transformer",
            "video_checkpoint": "detail_transformer"}  # fmt: skip


def read(root):
    family = find(checkpoint.read_index(root))
    return checkpoint.read(root, (*family.folders, *family.optional))


def refusal(root, of=read):
    with pytest.raises(CheckpointError) as caught:
        of(root)
    return str(caught.value)


def run(text, cwd):
    """Run the command that begins with "python -c" in `text`, as a shell does."""
    command = re.search(r"(python -c '.*?) Then ", text).group(1)
    line = re.sub("^python", shlex.quote(sys.executable), command)
    done = subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def pickle(folder, name, shards=1):
    """Turn the safetensors weights of a folder into pickles of PyTorch; return them."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    for n in range(shards):
        file = folder / (f"{name}.bin" if shards == 1 else f"{name}-{n + 1:05d}-of-{shards:05d}.bin")
        torch.save({key: tensors[key] for key in names[n::shards]}, file)
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("part", "name", "made", "shards"), [
    ("", "diffusion_pytorch_model", "diffusion_pytorch_model", 1),
    ("text_encoder", "pytorch_model", "model", 2),
])  # fmt: skip
def test_the_command_for_pickles_converts_them_for_each_family(request, tmp_path, family, part, name, made, shards):
    root = tmp_path / """it's "a" $(path)"""
    shutil.copytree(request.getfixturevalue(family), root)
    folder = part or FAMILIES[family]
    tensors = pickle(root / folder, name, shards)
    text = refusal(root)
    assert f"{folder} has its weights only as {name}" in text
    run(text, tmp_path)
    assert read(root).parts[folder].weights == (f"{folder}/{made}.safetensors",)
    found = load_file(root / folder / f"{made}.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_the_command_for_a_pickle_runs_none_of_its_code(tiny_checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    root = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, root)
    (root / "vae/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": Evil()}, root / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(AssertionError, match=r"weights_only|Unsupported|Weights only"):
        run(refusal(root), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_command_for_a_pickled_single_file_writes_its_tensors(tmp_path, wrapped):
    path = tmp_path / "my model.ckpt"
    tensors = {"model.diffusion_model.a": torch.arange(4.0)}
    torch.save({"state_dict": tensors, "epoch": 3} if wrapped else tensors, path)
    text = refusal(path, checkpoint.read_index)
    assert f"segue export '{tmp_path}/my model.safetensors' -o BUNDLE" in text
    run(text, tmp_path)
    found = load_file(tmp_path / "my model.safetensors")
    assert {key: value.tolist() for key, value in found.items()} == {"model.diffusion_model.a": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.onnx", "docs/guide/own-graph.md"),
        ("model.gguf", "segue quantize --help"),
        ("model.safetensors", "--base CHECKPOINT -o BUNDLE"),
        ("model.zip", "written by diffusers' save_pretrained"),
    ],
)
def test_the_advice_for_a_file_is_for_its_kind(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"12345678901234567890")
    text = refusal(tmp_path / name, checkpoint.read_index)
    assert words in text
    assert "from_single_file" not in text


def test_weights_of_another_framework_are_named_as_such(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/vae/diffusion_pytorch_model.safetensors").rename(
        tmp_path / "checkpoint/vae/diffusion_flax_model.msgpack"
    )
    assert "which PyTorch does not read" in refusal(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json", "vae/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/vocab.json",
        "tokenizer_2/tokenizer_config.json",
    ],
)  # fmt: skip
def test_a_pointer_of_git_lfs_is_named_as_one(tiny_checkpoint, tmp_path, file):
    root = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, root)
    (root / file).write_text(POINTER)
    assert refusal(root) == (
        f"{root / file} is a pointer of git-lfs, not the file itself. Fetch the file itself, in its repository: "
        "git lfs install && git lfs pull"
    )


def test_templates_and_texts_are_carried_and_what_is_left_is_named(tiny_checkpoint, tmp_path):
    root = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, root)
    kept = ["tokenizer/chat_template.jinja", "tokenizer/additional_chat_templates/tool.jinja", "tokenizer/x.tiktoken"]
    rest = ["pictures/one.png", "vae/diffusion_pytorch_model.bin"]
    for name in (*kept, *rest, ".cache/huggingface/x.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    found = read(root)
    assert set(kept) <= set(found.files)
    assert checkpoint.left_out(found) == f"left out, because no graph needs them: {', '.join(rest)}"
    for name in (*(f"{i}.png" for i in range(5)),):
        (root / name).write_text(name)
    assert checkpoint.left_out(read(root)).endswith("2.png, 3.png and 3 more")


def test_the_hub_fetches_every_kind_of_text_that_a_bundle_carries():
    assert {f"*{ending}" for ending in checkpoint.TEXTS} <= set(hub.OF_A_PART)


def test_a_config_with_a_byte_order_mark_is_read(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint/segue.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"steps": 9}).encode())
    assert read(tmp_path / "checkpoint").settings.steps == 9


def test_mixed_precision_is_that_of_most_weights(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    first = min(tensors)
    save_file(tensors | {first: tensors[first].half()}, path)
    part = read(tmp_path / "checkpoint").parts["vae"]
    assert checkpoint.precision(part) == "fp32"
    assert checkpoint.dtypes(part)["F16"] == tensors[first].numel()
