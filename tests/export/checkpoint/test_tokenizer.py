"""A tokenizer whose prompts cannot be padded is refused with the file to correct."""

import json

import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint import tokenizer
from segue.export.checkpoint.single.bases import write_base


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pad_token", None), ("model_max_length", None), ("model_max_length", 10**30), ("model_max_length", "77"),
        ("model_max_length", -5), ("model_max_length", 0), ("model_max_length", 77.5),
    ],
)  # fmt: skip
def test_a_tokenizer_without_padding_is_refused(tmp_path, key, value):
    root = write_base("sdxl", tmp_path / "base")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = root / "tokenizer" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=rf"tokenizer/tokenizer_config.json gives no {key}"):
        tokenizer.write(root, "tokenizer", None)
