"""The refusals of a Wan checkpoint name the real cause."""

import json
import shutil

import pytest

from segue.errors import CheckpointError
from segue.export.export import export


@pytest.fixture
def copy(video_checkpoint, tmp_path):
    """A checkpoint of both stages as others publish it: without a segue.json."""
    shutil.copytree(video_checkpoint, tmp_path / "wan")
    (tmp_path / "wan/segue.json").unlink()
    return tmp_path / "wan"


def refusal(root, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        export(root, tmp_path / "bundle")
    text = str(caught.value)
    assert "guidance" not in text
    assert "etch the" not in text
    return text


def test_a_checkpoint_without_stage_two_is_told_so(copy, tmp_path):
    index = json.loads((copy / "model_index.json").read_text())
    kept = {name: entry for name, entry in index.items() if not name.startswith("detail_")}
    (copy / "model_index.json").write_text(json.dumps(kept))
    assert refusal(copy, tmp_path).startswith(
        "The checkpoint has no detail_transformer: it is Wan's image to video alone, without Stage II. Train a Stage II"
    )


def test_a_stage_two_that_was_never_widened_is_told_so(copy, tmp_path):
    path = copy / "detail_transformer/config.json"
    config = json.loads(path.read_text())
    assert config["in_channels"] == 12
    path.write_text(json.dumps(config | {"in_channels": 6}))
    assert "in_channels 6, as a plain Wan transformer has. Stage II needs 12" in refusal(copy, tmp_path)
