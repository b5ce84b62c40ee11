"""Checkpoints by their names on the hub; the hub itself is stood in for, for no test may need the network."""

import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint import read
from segue.export.checkpoint.hub import Origin, locate
from segue.export.checkpoint.provenance import provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Unreachable(Exception):
    """As the HTTP client's own errors: no OSError."""


@pytest.fixture
def hub(monkeypatch, tiny_checkpoint):
    """A hub that has one model; returns what it was asked for."""
    asked = {}

    class Api:
        def model_info(self, name, revision=None):
            asked["info"] = (name, revision)
            if name == "org/down":
                raise Unreachable("no route to host\nmore lines")
            siblings = [type("File", (), {"rfilename": name}) for name in asked.get("files", ())]
            return type("Info", (), {"sha": COMMIT, "siblings": siblings})

    def one(name, file, revision):
        return str(tiny_checkpoint / file)

    def snapshot(name, revision, allow_patterns, ignore_patterns):
        asked["snapshot"] = (name, revision, allow_patterns, ignore_patterns)
        return str(tiny_checkpoint)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def fetched(hub, file):
    _, _, allowed, ignored = hub["snapshot"]
    return any(fnmatch.fnmatch(file, p) for p in allowed) and not any(fnmatch.fnmatch(file, p) for p in ignored)


def test_a_name_is_fetched_at_its_commit(hub, tiny_checkpoint):
    assert locate("hf:org/tiny@main") == (tiny_checkpoint, Origin("org/tiny", COMMIT))
    assert hub["info"] == ("org/tiny", "main")
    assert hub["snapshot"][:2] == ("org/tiny", COMMIT)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", True),
        ("text_encoder/model.safetensors", True), ("tokenizer/vocab.json", True), ("LICENSE.md", True),
        ("text_encoder/model.fp16.safetensors", False), ("text_encoder/pytorch_model.bin", False),
        ("sd3_medium_incl_clips.safetensors", False), ("text_encoder_3/model.safetensors", False),
    ],
)  # fmt: skip
def test_what_the_index_names_is_fetched_and_nothing_else(hub, file, wanted):
    locate("hf:org/tiny")
    assert fetched(hub, file) == wanted


def test_a_path_is_never_looked_up_on_the_hub(hub):
    assert locate("no/such") == (Path("no/such"), None)
    assert hub == {}


@pytest.mark.parametrize("name", ["hf:tiny", "hf:a/b/c", "hf:"])
def test_a_name_that_is_none_is_refused(hub, name):
    with pytest.raises(CheckpointError, match="is not a name of the hub"):
        locate(name)


def test_a_hub_that_cannot_be_reached_is_an_error_with_what_to_do(hub):
    with pytest.raises(CheckpointError, match=r"'hf:org/down' cannot be fetched from the hub: no route to host\."):
        locate("hf:org/down")


def test_the_bundle_says_where_it_came_from(hub):
    path, origin = locate("hf:org/tiny")
    found = read.read(path, ("transformer",))
    made = provenance(found, origin, ())
    assert (made.source, made.revision) == ("org/tiny", COMMIT)


VARIANTS = (
    "transformer/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/model.safetensors", "text_encoder/model.fp32.safetensors",
    "text_encoder_2/model.safetensors.index.json", "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model.safetensors.index.fp16.json", "text_encoder_2/model.fp16-00001-of-00002.safetensors",
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "wanted"), zip(VARIANTS, (False, True, True, False, False, False, True, True), strict=True)
)
def test_a_variant_is_fetched_where_a_folder_has_it(hub, file, wanted):
    hub["files"] = VARIANTS
    locate("hf:org/tiny", "fp16")
    assert fetched(hub, file) == wanted


def test_weights_that_a_single_file_has_are_not_fetched(hub, tiny_checkpoint):
    seen = []

    def own(index):
        seen.append(index["_class_name"])
        return ("transformer", "text_encoder")

    locate("hf:org/tiny", "", own)
    assert seen == ["StableDiffusion3Pipeline"]
    files = {
        "transformer/diffusion_pytorch_model.safetensors": False, "transformer/config.json": True,
        "transformer/diffusion_pytorch_model.safetensors.index.json": False, "text_encoder/model.safetensors": False,
        "vae/diffusion_pytorch_model.safetensors": True,
    }  # fmt: skip
    assert {file: fetched(hub, file) for file in files} == files


def test_a_base_of_another_model_is_refused_before_its_weights_are_fetched(hub):
    def own(index):
        raise CheckpointError("another model. Give its base.")

    with pytest.raises(CheckpointError, match="another model"):
        locate("hf:org/tiny", "", own)
    assert "snapshot" not in hub
