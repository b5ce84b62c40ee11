"""A checkpoint's files are copied only if the disk has room for them."""

import shutil
from collections import namedtuple

import pytest

from segue.errors import OutputError
from segue.export.checkpoint import convert, copy, read

FOLDERS = ("text_encoder", "text_encoder_2", "transformer", "vae")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Function that lets the disk have that many bytes free, and share no blocks."""
    monkeypatch.setattr(convert, "shares_blocks", lambda source, directory: False)
    return lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - count, count))


@pytest.mark.parametrize(("kind", "part"), [("keep", 1.0), ("fp16", 0.5)])
def test_a_full_disk_is_refused_before_anything_is_copied(tiny_checkpoint, tmp_path, free, kind, part):
    found = read.read(tiny_checkpoint, FOLDERS)
    weights = sum(t.length for p in found.parts.values() for t in p.tensors.values())
    wanted = dict.fromkeys(found.parts, kind)
    free(int(part * weights) - 1)
    with pytest.raises(OutputError, match=rf"needs (\d+) bytes .* has {int(part * weights) - 1} free") as caught:
        copy.copy(found, tmp_path, wanted, lambda *_: None)
    assert list(tmp_path.iterdir()) == []
    needed = int(str(caught.value).split()[3])
    others = sum((tiny_checkpoint / file).stat().st_blocks * 512 for file in found.files)
    assert part * weights <= needed <= part * weights + others
    free(needed)
    assert copy.copy(found, tmp_path, wanted, lambda *_: None).keys() == set(found.files)


def test_files_that_share_their_blocks_need_no_room(tiny_checkpoint, tmp_path, free, monkeypatch):
    found = read.read(tiny_checkpoint, FOLDERS)
    free(0)
    monkeypatch.setattr(convert, "shares_blocks", lambda source, directory: True)
    assert copy.copy(found, tmp_path, {}, lambda *_: None).keys() == set(found.files)
