"""Checkpoints by their names on the hub; the hub itself is stood in for, for no test may need the network."""

import huggingface_hub
import pytest

from segue.errors import CheckpointError
from segue.export.export import export
from segue.export.hub import Origin, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tiny_checkpoint):
    """A hub that has one model; returns what it was asked for."""
    asked = []

    class Api:
        def model_info(self, name, revision=None):
            asked.append((name, revision))
            if name != "org/tiny":
                raise OSError("404 Client Error: Repository Not Found\nmore lines")
            return type("Info", (), {"sha": COMMIT})

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(tiny_checkpoint)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def test_a_name_is_fetched_at_its_commit_and_without_pickles(hub, tiny_checkpoint):
    assert locate("org/tiny@main") == (tiny_checkpoint, Origin("org/tiny", COMMIT))
    assert hub[0] == ("org/tiny", "main")
    assert hub[1][:2] == ("org/tiny", COMMIT)
    assert not {"*.bin", "*.pt", "*.ckpt", "*"} & set(hub[1][2])


def test_a_directory_of_that_name_wins(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/tiny").mkdir(parents=True)
    assert locate("org/tiny")[1] is None
    assert locate("no/such/path")[1] is None
    assert hub == []


def test_a_model_that_the_hub_lacks_is_an_error_with_what_to_do(hub):
    with pytest.raises(CheckpointError, match=r"'org/other' is no directory.*Repository Not Found\. Name a directory"):
        locate("org/other")


def test_the_bundle_says_where_it_came_from(hub, tmp_path):
    path, origin = locate("org/tiny")
    made = export(path, tmp_path / "b", parity=False, origin=origin)
    assert (made.provenance.source, made.provenance.revision) == ("org/tiny", COMMIT)
