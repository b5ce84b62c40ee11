"""Checkpoints by their names on the hub; the hub itself is stood in for, for no test may need the network."""

import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from segue.errors import CheckpointError
from segue.export import export
from segue.export.checkpoint import read
from segue.export.checkpoint.hub import Origin, locate

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
            return type("Info", (), {"sha": COMMIT})

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
    made = export._provenance(found, origin, ())
    assert (made.source, made.revision) == ("org/tiny", COMMIT)
