import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segue
from segue.errors import OutputError, UsageError
from segue.runtime.bundle import manifest
from segue.runtime.media import png
from segue.runtime.sampling import latents
from segue.runtime.storage import files

PICTURE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
FACTS = {
    "prompt": "a rød 心 heart\nü\0",
    "negative": "",
    "seed": 2**64 - 1,
    "guidance": 4.5,
    "steps": 4,
    "size": [5, 7],
}


def test_latents_are_scaled_for_the_decoder_as_in_diffusers():
    x = np.random.default_rng(0).standard_normal((1, 16, 4, 4)).astype(np.float32)
    found = latents.for_decoder(x, manifest.Latents(16, 8, 2, 1.5305, 0.0609))
    assert np.array_equal(found, (torch.from_numpy(x) / 1.5305 + 0.0609).numpy())


def test_a_written_picture_comes_back_with_its_metadata(tmp_path):
    path = tmp_path / "picture.png"
    segue.write_png(path, PICTURE, FACTS)
    with Image.open(path) as found:
        assert np.array_equal(np.array(found), PICTURE)
        assert found.text["parameters"].startswith(
            "a rød 心 heart\nü \nSteps: 4, Sampler: Euler, CFG scale: 4.5, Seed: 1844"
        )
        assert "Size: 7x5" in found.text["parameters"]
    assert segue.read_metadata(path) == segue.read_metadata(str(path)) == FACTS
    assert os.listdir(tmp_path) == ["picture.png"]


def chunks(data):
    """Return the kinds and contents of a PNG's chunks, read byte by byte."""
    place, found = 8, []
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += length + 12
    return found


def test_galleries_find_the_parameters_in_a_plain_text_chunk():
    facts = FACTS | {"prompt": "café", "negative": "blue", "sampler": "euler-ancestral", "bundle": "mine"}
    found = dict(chunks(png.encode_png(PICTURE, facts)))
    key, _, text = found[b"tEXt"].partition(b"\0")
    lines = text.decode("latin-1").split("\n")
    assert key == b"parameters"
    assert lines[:2] == ["café", "Negative prompt: blue"]
    assert lines[2] == f"Steps: 4, Sampler: Euler a, CFG scale: 4.5, Seed: {FACTS['seed']}, Size: 7x5, Model: mine"
    made = dict(chunks(png.encode_png(PICTURE, facts | {"strength": 0.6, "feather": 4})))
    assert made[b"tEXt"].endswith(b"Model: mine, Denoising strength: 0.6, Mask blur: 4")
    other = png.encode_png(PICTURE, facts | {"prompt": "心"})
    assert [data.split(b"\0")[0] for kind, data in chunks(other) if kind == b"iTXt"] == [b"segue", b"parameters"]


def test_a_path_may_be_text(tmp_path):
    segue.write_png(str(tmp_path / "x.png"), PICTURE, FACTS)
    assert segue.read_metadata(tmp_path / "x.png") == FACTS
    with pytest.raises(OutputError, match=r"no/x\.png cannot be written"):
        segue.write_png(str(tmp_path / "no/x.png"), PICTURE, FACTS)


def test_a_picture_has_the_permissions_of_an_ordinary_file(tmp_path):
    old = os.umask(0o027)
    try:
        png.write_png(tmp_path / "picture.png", PICTURE, FACTS)
    finally:
        os.umask(old)
    assert (tmp_path / "picture.png").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    png.write_png(path, PICTURE, FACTS)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        png.write_png(path, PICTURE[::-1], FACTS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["picture.png"]


def test_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="a directory or a device"):
        png.write_png(tmp_path / "pipe", PICTURE, FACTS)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("wrong", [PICTURE.astype(np.float32), PICTURE[..., 0], np.zeros((2, 5, 7, 3), np.uint8)])
def test_arrays_that_are_no_picture_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="a picture must be uint8"):
        png.write_png(tmp_path / "x.png", wrong, {})


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_files_that_are_no_picture_have_no_metadata(tmp_path, content):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a readable PNG"):
        png.read_metadata(path)


def test_a_header_that_claims_more_pixels_than_pillow_opens_is_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UsageError, match="is not a readable PNG"):
        png.read_metadata(tmp_path / "x.png")


def test_a_picture_of_another_program_has_no_metadata(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    with pytest.raises(UsageError, match="no Segue metadata"):
        png.read_metadata(tmp_path / "x.png")


def test_a_writable_place_is_left_as_it_was(tmp_path):
    files.check_writable(tmp_path / "new.png")
    (tmp_path / "old.png").write_bytes(b"old")
    files.check_writable(tmp_path / "old.png")
    assert os.listdir(tmp_path) == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_places_that_cannot_be_written_are_found_out_before_rendering(tmp_path):
    with pytest.raises(OutputError, match="is a directory"):
        files.check_writable(tmp_path)
    with pytest.raises(OutputError, match=r"does not exist. Make it first: mkdir -p"):
        files.check_writable(tmp_path / "no" / "x.png")
    with pytest.raises(OutputError, match="cannot be written"):
        files.check_writable(tmp_path / ("x" * 300))
    with pytest.raises(OutputError, match="is a device"):
        files.check_writable(Path("/dev/null"))
    if os.path.isdir("/proc/self"):
        with pytest.raises(OutputError, match="cannot be written"):
            files.check_writable(Path("/proc/x.png"))
