"""Variants of the weights, such as fp16, under the names that a checkpoint usually has."""

import json
import re
import shlex
import shutil

import pytest
from safetensors.torch import load_file, save_file

from segue.commands.export import export as command
from segue.errors import CheckpointError
from segue.export.checkpoint import read
from segue.export.checkpoint.single.stage import staged
from segue.export.checkpoint.view import link, plain_name, variant_of, write_variant

FOLDERS = ("text_encoder", "text_encoder_2", "transformer", "vae")


def narrow(path, name):
    """Write the fp16 variant of a weight file beside it."""
    save_file({n: t.half() for n, t in load_file(path).items()}, path.with_name(name), {"format": "pt"})


@pytest.fixture
def both(tiny_checkpoint, tmp_path):
    """A checkpoint in fp32, whose folders but one have an fp16 variant too; one variant is in two shards."""
    root = shutil.copytree(tiny_checkpoint, tmp_path / "both")
    narrow(root / "vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    narrow(root / "text_encoder/model.safetensors", "model.fp16.safetensors")
    state = load_file(root / "transformer/diffusion_pytorch_model.safetensors")
    names = sorted(state)
    shards = [f"diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard, own in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({name: state[name].half() for name in own}, root / "transformer" / shard)
    index = {"metadata": {}, "weight_map": {name: shards[n % 2] for n, name in enumerate(names)}}
    path = root / "transformer/diffusion_pytorch_model.safetensors.index.fp16.json"
    path.write_text(json.dumps(index))
    return root


@pytest.mark.parametrize(
    ("name", "variant", "plain"),
    [
        ("model.fp16.safetensors", "fp16", "model.safetensors"),
        ("diffusion_pytorch_model.bf16.safetensors", "bf16", "diffusion_pytorch_model.safetensors"),
        ("model.safetensors.index.fp16.json", "fp16", "model.safetensors.index.json"),
        ("model.fp16.safetensors.index.json", "fp16", "model.safetensors.index.json"),
        ("model.safetensors", "", ""),
        ("model.safetensors.index.json", "", ""),
        ("model-00001-of-00002.safetensors", "", ""),
        ("model-00001-of-00002.fp16.safetensors", "", ""),
        ("model.fp16-00001-of-00002.safetensors", "", ""),
        ("config.json", "", ""),
    ],
)
def test_both_spellings_of_a_variant_are_known(name, variant, plain):
    assert variant_of(name) == variant
    assert not variant or plain_name(name) == plain


def test_a_variant_takes_the_plain_names_and_its_own_bytes(both):
    with staged(str(both), variant="fp16") as source:
        found = read.read(source.root, FOLDERS)
        kinds = {folder: {t.dtype for t in part.tensors.values()} for folder, part in found.parts.items()}
        assert kinds == {"text_encoder": {"F16"}, "text_encoder_2": {"F32"}, "transformer": {"F16"}, "vae": {"F16"}}
        assert found.parts["vae"].weights == ("vae/diffusion_pytorch_model.safetensors",)
        assert found.parts["transformer"].weights == tuple(
            f"transformer/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)
        )
        taken = (source.root / "vae/diffusion_pytorch_model.safetensors").read_bytes()
        assert taken == (both / "vae/diffusion_pytorch_model.fp16.safetensors").read_bytes()
        assert not any(".fp16.safetensors" in file for file in found.files)
        assert source.title == "both"
    # A folder without the variant has its plain weights taken, and that is said
    assert source.notes == ("text_encoder_2: no variant fp16, so the plain files are taken",)


def test_without_the_option_the_plain_files_are_taken(both):
    with staged(str(both)) as source:
        found = read.read(source.root, FOLDERS)
    assert {t.dtype for part in found.parts.values() for t in part.tensors.values()} == {"F32"}


def test_a_checkpoint_with_a_variant_alone_names_the_option_with_a_command_that_works(both):
    (both / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="vae has its weights only as a variant") as caught:
        read.read(both, FOLDERS)
    words = shlex.split(re.search(r"segue (export .*)", str(caught.value))[1])
    options = command.make_context("export", words[1:], resilient_parsing=True).params
    assert options["variant"] == "fp16"
    with staged(options["checkpoint"], variant=options["variant"]) as source:
        assert read.read(source.root, FOLDERS).parts["vae"].tensors


def test_a_variant_that_is_nowhere_is_refused_with_those_that_are_there(both, tmp_path):
    with pytest.raises(CheckpointError, match=r"no file of the variant 'bf16'.*It has fp16"):
        write_variant(both, "bf16", tmp_path / "view")


def test_an_index_under_both_spellings_leaves_the_checkpoint_as_it_is(both):
    known = both / "transformer/diffusion_pytorch_model.safetensors.index.fp16.json"
    other = known.with_name("diffusion_pytorch_model.fp16.safetensors.index.json")
    other.write_text(known.read_text() + "\n")
    before = {path: path.read_bytes() for path in both.rglob("*.json")}
    with staged(str(both), variant="fp16") as source:
        assert read.read(source.root, FOLDERS).parts["transformer"].tensors
    assert {path: path.read_bytes() for path in both.rglob("*.json")} == before


def test_a_link_never_writes_through_another_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    link(tmp_path / "one", tmp_path / "view")
    with pytest.raises(FileExistsError):
        link(tmp_path / "two", tmp_path / "view")
    assert (tmp_path / "one").read_text() == "one"


def test_a_hub_cache_whose_files_are_links_is_followed(tiny_checkpoint, tmp_path):
    root = tmp_path / "models--org--tiny/snapshots/0123"
    blobs = tmp_path / "models--org--tiny/blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(tiny_checkpoint.rglob("*.*"))):
        shutil.copyfile(path, blobs / str(number))
        link = root / path.relative_to(tiny_checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"{'../' * len(link.relative_to(root.parents[1]).parent.parts)}blobs/{number}")
    plain, found = read.read(tiny_checkpoint, FOLDERS), read.read(root, FOLDERS)
    assert found.files == plain.files
    assert found.parts == plain.parts
    narrow(root / "vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    with staged(str(root), variant="fp16") as source:
        assert {t.dtype for t in read.read(source.root, FOLDERS).parts["vae"].tensors.values()} == {"F16"}
