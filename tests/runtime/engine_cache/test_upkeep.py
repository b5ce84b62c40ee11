"""What becomes of engines that are kept: counted, told of, removed."""

import dataclasses
import os

import pytest

from segue.engines.tensorrt.build import Built
from segue.errors import UsageError
from segue.runtime.engine_cache import upkeep
from segue.runtime.engine_cache.store import PLAN, RECORD, Entry, Fingerprint, entries, get, obtain, root

WHOLE = Fingerprint(
    graph="a" * 64, weights={}, precision="fp16", target="tensorrt-rtx", version="1.7.1", capabilities=(89,),
    profiles=(), workspace=None, streaming=False, system="Linux-x86_64", gpu="", driver="", recipe=0,
)  # fmt: skip


def made(recipe: int) -> Entry:
    """Return a new engine of ten bytes, used for the last time `recipe` seconds after the epoch."""

    def build(out):
        out.write_bytes(b"0123456789")
        return Built(1.5, 3, 1, 0, ())

    entry, _ = obtain(dataclasses.replace(WHOLE, recipe=recipe), "tiny", "transformer", build, "2026-01-01")
    os.utime(entry.directory / RECORD, (recipe, recipe))
    return entry


def kept() -> set[int]:
    return {entry.record.fingerprint.recipe for entry in entries(root())}


def test_the_least_recently_used_go_first():
    for recipe in range(4):
        made(recipe)
    get(WHOLE)  # used just now
    assert len(upkeep.evict(25)) == 2
    assert kept() == {0, 3}


@pytest.mark.parametrize("harm", [lambda text: "{", lambda text: text.replace('"schema": 1', '"schema": 0')])
def test_those_that_cannot_be_read_count_and_go_before_the_least_recently_used(harm):
    for recipe in range(3):
        entry = made(recipe)
    record = entry.directory / RECORD
    record.write_text(harm(record.read_text()))
    assert upkeep.evict(10**6) == []
    assert upkeep.evict(25) == [entry.directory]
    assert not entry.directory.exists()
    assert kept() == {0, 1}


def test_those_that_cannot_be_read_are_told_with_their_size_and_what_is_wrong():
    made(1)
    entry = made(2)
    (entry.directory / RECORD).write_text("{")
    (found,) = upkeep.unreadable(root())
    assert found.directory == entry.directory
    assert found.bytes == 10 + 1
    assert "is damaged" in found.why
    assert upkeep.unreadable(root() / "nowhere") == []


def test_all_that_are_to_be_kept_stay_whatever_their_size():
    keep = {made(recipe).directory.name for recipe in range(2)}
    made(2)
    upkeep.evict(5, keep)
    assert kept() == {0, 1}


@pytest.mark.parametrize(("text", "limit"), [(None, 64 * 2**30), ("", 64 * 2**30), ("100GiB", 100 * 2**30)])
def test_the_limit_is_set_by_the_environment(text, limit, monkeypatch):
    monkeypatch.delenv("SEGUE_ENGINE_CACHE", raising=False)
    if text is not None:
        monkeypatch.setenv("SEGUE_ENGINE_CACHE", text)
    assert upkeep.limit() == limit


def test_a_limit_that_is_no_amount_is_named_with_its_variable(monkeypatch):
    monkeypatch.setenv("SEGUE_ENGINE_CACHE", "100")
    with pytest.raises(UsageError, match=r"SEGUE_ENGINE_CACHE cannot be read: '100' means 100 bytes\. Write 100GiB"):
        upkeep.limit()


def test_verify_counts_whole_ones_and_names_the_others():
    made(1)
    entry = made(2)
    (entry.directory / PLAN).write_bytes(b"evil")
    whole, wrong = upkeep.verify(root())
    assert whole == 1
    assert len(wrong) == 1
    assert str(entry.plan) in wrong[0]


def test_clear_removes_the_logs_of_builds_that_failed_whole_and_half_written():
    made(1)
    for name in (f"failed-{'0' * 64}.log", f".failed-{'0' * 64}.log.abc"):
        (root() / name).write_text("error: enough")
    assert upkeep.clear() == 1
    assert {path.suffix for path in root().iterdir()} == {".lock"}


def test_clear_removes_damaged_ones_too():
    entry = made(1)
    (entry.directory / RECORD).unlink()
    assert upkeep.clear() == 1
    assert not entry.directory.exists()
    assert upkeep.clear() == 0


def test_the_rest_of_the_cache_is_counted_and_removed_but_not_a_place_of_the_users(cache, tmp_path, monkeypatch):
    assert upkeep.rest() == []
    (cache / "data/package").mkdir(parents=True)
    (cache / "data/package/file").write_bytes(b"0123456789")
    (cache / "parity").mkdir()
    (cache / "parity/report.json").write_bytes(b"{}")
    (cache / "verified.json").write_text('["one", "two"]')
    found = {held.what.split()[0]: (held.count, held.bytes, held.mine) for held in upkeep.rest()}
    assert found == {"training": (1, 10, True), "digests": (2, 14, True), "reports": (1, 2, True)}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"12345")
    monkeypatch.setenv("SEGUE_DATA", str(elsewhere))
    assert [held.mine for held in upkeep.rest()] == [False, True, True]
    assert upkeep.clear_rest() == 16
    assert (elsewhere / "file").is_file()
    assert (cache / "data/package/file").is_file()
    monkeypatch.delenv("SEGUE_DATA")
    assert upkeep.clear_rest() == 10
    assert list(cache.iterdir()) == []
