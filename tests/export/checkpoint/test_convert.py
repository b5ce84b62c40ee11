"""Weight files are placed as they are, or converted tensor by tensor."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.errors import CheckpointError
from segue.export.checkpoint import convert


def sha256(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_placed_file_is_a_file_of_its_own(tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(3 * convert.PIECE + 5))
    seen = []
    digest = convert.place(tmp_path / "a", tmp_path / "b", seen.append)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert digest == sha256(tmp_path / "a")
    assert sum(seen) == 3 * convert.PIECE + 5
    assert (tmp_path / "b").stat().st_nlink == 1
    assert not (tmp_path / "b").is_symlink()
    (tmp_path / "b").write_bytes(b"changed")
    assert digest == sha256(tmp_path / "a")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("kind", "wanted"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_conversion_rounds_as_torch_does(tmp_path, monkeypatch, stored, kind, wanted):
    monkeypatch.setattr(convert, "PIECE", 1024)  # several pieces a tensor
    values = torch.randn(70, 50, dtype=torch.float64) * 10 ** torch.empty(70, 1, dtype=torch.float64).uniform_(-6, 3)
    tensors = {
        "w": values.to(stored),
        "b": torch.tensor(3.5).to(stored),
        "ids": torch.arange(5),
        "none": torch.empty(0, 3),
    }
    save_file(tensors, tmp_path / "a")
    digest = convert.convert(tmp_path / "a", tmp_path / "b", kind)
    assert digest == sha256(tmp_path / "b")
    found = load_file(tmp_path / "b")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.to(wanted) if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)


def test_a_value_beyond_half_precision_is_refused(tmp_path):
    save_file({"w": torch.tensor([1.0, -70000.0])}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="holds 70000 in 'w', beyond fp16"):
        convert.convert(tmp_path / "a", tmp_path / "b", "fp16")


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_value_beyond_single_precision_is_refused(tmp_path, kind):
    save_file({"w": torch.tensor([1.0, -1e39], dtype=torch.float64)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"holds 1e\+39 in 'w', beyond fp32.*Correct that tensor"):
        convert.convert(tmp_path / "a", tmp_path / "b", kind)


def test_infinities_that_are_stored_stay(tmp_path):
    save_file({"w": torch.tensor([torch.inf, -torch.inf, torch.nan])}, tmp_path / "a")
    convert.convert(tmp_path / "a", tmp_path / "b", "fp16")
    assert load_file(tmp_path / "b")["w"].tolist()[:2] == [torch.inf, -torch.inf]


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])  # the first is the one that CUDA gives
def test_no_nan_becomes_a_number_in_bf16(bits):
    packed = convert.pack(np.array([bits], np.uint32).view(np.float32), "BF16")
    assert packed == np.uint16(0x7FC0).tobytes()  # as torch rounds it


def test_after_sharing_blocks_the_hash_is_of_the_target(tmp_path, monkeypatch):
    def share(reader, writer):
        writer.write(b"as it was")
        writer.seek(0)
        return True

    monkeypatch.setattr(convert, "_share_blocks", share)
    (tmp_path / "a").write_bytes(b"changed since")
    assert convert.place(tmp_path / "a", tmp_path / "b") == sha256(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"as it was"


def test_float8_is_refused(tmp_path):
    save_file({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="F8_E4M3, which Segue does not convert"):
        convert.convert(tmp_path / "a", tmp_path / "b", "fp16")


@pytest.mark.parametrize(
    ("kind", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_written_buffers_are_rounded_as_torch_does(tmp_path, kind, dtype):
    values = np.random.default_rng(0).standard_normal((33, 7), dtype=np.float32)
    convert.write(tmp_path / "a", {"table": values}, kind)
    assert torch.equal(load_file(tmp_path / "a")["table"], torch.from_numpy(values).to(dtype))
