"""A safetensors header is believed only where all of it adds up."""

import json
import struct

import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint import headers

GOOD = {"a": ("F32", [2], [0, 8]), "b": ("F16", [3], [8, 14])}


def write(path, table, size, raw=None, claimed=None):
    text = (
        raw or json.dumps({k: {"dtype": d, "shape": s, "data_offsets": o} for k, (d, s, o) in table.items()}).encode()
    )
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + bytes(size))
    return path


def test_a_good_header_gives_absolute_offsets(tmp_path):
    path = write(tmp_path / "x.safetensors", GOOD, 14)
    start = path.stat().st_size - 14
    table = headers.read(path, "x")
    assert table["a"] == headers.Tensor("a", "x", start, 8, "F32", (2,))
    assert table["b"] == headers.Tensor("b", "x", start + 8, 6, "F16", (3,))


def test_an_encoded_header_is_read_by_the_safetensors_library(tmp_path):
    from safetensors.numpy import load

    head = headers.encode([("é", "F32", (2,), 8), ("b", "I64", (), 8)])
    assert len(head) % 8 == 0
    assert {k: v.tolist() for k, v in load(head + bytes(16)).items()} == {"é": [0.0, 0.0], "b": 0}


@pytest.mark.parametrize(
    ("table", "size", "message"),
    [
        (GOOD | {"b": ("F16", [3], [6, 12])}, 12, "overlaps the tensor before it"),
        (GOOD | {"b": ("F16", [3], [0, 6])}, 14, "overlaps the tensor before it"),
        (GOOD | {"b": ("F16", [3], [10, 16])}, 16, "leaves a hole"),
        ({"a": ("F32", [2], [4, 12])}, 12, "leaves a hole"),
        (GOOD, 13, "its tensors end at byte"),
        (GOOD, 15, "its tensors end at byte"),
        ({"a": ("F32", [2], [0, 2**70])}, 8, "claims"),
        ({"a": ("F32", [2**62, 2**62], [0, 8])}, 8, "claims"),
        ({"a": ("F32", [2], [8, 0])}, 8, "claims"),
        ({"a": ("F32", [-2, -1], [0, 8])}, 8, "has shape"),
        ({"a": ("F32", [True, 2], [0, 8])}, 8, "has shape"),
        ({"a": ("F32", [2.0], [0, 8])}, 8, "has shape"),
        ({"a": ("F32", 2, [0, 8])}, 8, "has shape"),
        ({"a": ("F32", [2], [-8, 0])}, 8, "has shape"),
        ({"a": ("F32", [2], [0, 4, 8])}, 8, "has shape"),
        ({"a": ("F99", [2], [0, 8])}, 8, "has the dtype"),
        ({"a": (["F32"], [2], [0, 8])}, 8, "has the dtype"),
    ],
)
def test_tensors_that_do_not_add_up_are_refused(tmp_path, table, size, message):
    path = write(tmp_path / "x.safetensors", table, size)
    with pytest.raises(CheckpointError, match=message):
        headers.read(path, "model.safetensors")


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b"{",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}',
        b'{"\xff": 1}',
        b"[" * 100_000,
    ],
)
def test_text_that_is_no_header_is_refused(tmp_path, raw):
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        headers.read(write(tmp_path / "x.safetensors", {}, 8, raw=raw), "x")


@pytest.mark.parametrize("claimed", [0, 1, 100_000, 100_000_001, 2**63, 2**64 - 1])
def test_a_length_that_lies_is_refused_before_anything_is_read(tmp_path, claimed):
    with pytest.raises(CheckpointError, match="its header claims"):
        headers.read(write(tmp_path / "x.safetensors", GOOD, 14, claimed=claimed), "x")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x").mkdir()  # permissions would not stop a superuser
    with pytest.raises(CheckpointError, match=r"x cannot be read .*Check its permissions"):
        headers.read(tmp_path / "x", "x")


def test_only_a_failure_at_the_source_is_of_the_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="a/b cannot be read"), headers.reading(tmp_path / "a"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "a/b"))
    with pytest.raises(PermissionError), headers.reading(tmp_path / "a"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "b"))
    with pytest.raises(BrokenPipeError), headers.reading(tmp_path / "a"):
        raise BrokenPipeError(32, "Broken pipe")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(CheckpointError, match="in a file of 0"):
        headers.read(tmp_path / "x", "x")
