"""Faults of the engine cache: each ends in a rebuild or a clear error, never in a wrong engine."""

import dataclasses
import multiprocessing
import os
import signal
import time

import pytest
from filelock import FileLock

from segue.engines.tensorrt.build import Built
from segue.errors import Cancelled, EngineError, OutputError
from segue.runtime.engine_cache import store
from segue.runtime.engine_cache.store import RECORD, Fingerprint, entries, get, obtain, root

WHOLE = Fingerprint(
    graph="a" * 64, weights={"w.safetensors": "b" * 64}, precision="fp16", target="tensorrt-rtx", version="1.7.1",
    capabilities=(89,), profiles=({"x": ((1,), (2,), (3,))},), workspace=None, streaming=False, system="Linux-x86_64",
    gpu="", driver="", recipe=1,
)  # fmt: skip


class Builder:
    """Writes bytes and counts how often it was asked; the real builder has tests of its own."""

    def __init__(self, data=b"plan"):
        self.data, self.calls = data, 0

    def __call__(self, out):
        self.calls += 1
        out.write_bytes(self.data)
        return Built(1.5, 3, 1, 0, ("warning: something",))


def made(builder, fingerprint=WHOLE, **options):
    return obtain(fingerprint, "tiny", "transformer", builder, "2026-01-01T00:00:00+00:00", **options)


def test_an_engine_is_built_once_and_found_again():
    builder = Builder()
    entry, fresh = made(builder)
    again, fresh_again = made(builder)
    assert (fresh, fresh_again, builder.calls) == (True, False, 1)
    assert again.plan.read_bytes() == b"plan"
    assert again.record == entry.record
    assert (entry.record.seconds, entry.record.layers, entry.record.fused) == (1.5, 3, 1)
    assert (entry.directory / "build.log").read_text() == "warning: something\n"


@pytest.mark.parametrize(
    "changed",
    [
        {"graph": "c" * 64}, {"weights": {"w.safetensors": "c" * 64}}, {"precision": "bf16"}, {"target": "tensorrt"},
        {"version": "1.7.2"}, {"capabilities": (120,)}, {"profiles": ({"x": ((1,), (2,), (4,))},)}, {"workspace": 5},
        {"streaming": True}, {"system": "Windows-AMD64"}, {"gpu": "RTX 4090"}, {"driver": "580"}, {"recipe": 2},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_every_field_makes_another_engine(changed):
    builder = Builder()
    made(builder)
    other = dataclasses.replace(WHOLE, **changed)
    made(builder, other)
    assert builder.calls == 2
    assert len(entries(root())) == 2
    assert [text.split()[0] for text in store.differences(WHOLE, other)] == list(changed)


@pytest.mark.parametrize("again", [b"plaN", b"plan and more", b""], ids=["a byte", "longer", "empty"])
def test_an_altered_engine_is_built_again_and_refused_where_it_is_opened(again):
    builder = Builder()
    entry, _ = made(builder)
    entry.plan.write_bytes(again)
    with pytest.raises(EngineError, match=r"was altered.*segue build"):
        entry.check()
    assert get(WHOLE) is None
    entry, fresh = made(builder)
    assert fresh
    assert entry.plan.read_bytes() == b"plan"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"recipe": 1', b'"recipe": 2', "belongs to another engine"),
        (b'"schema": 1', b'"schema": 9', "schema 9"),
        (b'"layers": 3', b'"layers": "3"', "layers"),
        (b"{", b"", "Extra data|Expecting"),
    ],
)
def test_an_altered_record_is_built_again(old, new, why):
    builder = Builder()
    entry, _ = made(builder)
    record = entry.directory / RECORD
    record.write_bytes(record.read_bytes().replace(old, new, 1))
    with pytest.raises(EngineError, match=why):
        store.read(entry.directory)
    assert entries(root()) == []
    made(builder)
    assert builder.calls == 2


def test_an_engine_under_the_name_of_another_is_not_taken():
    entry, _ = made(Builder())
    other = dataclasses.replace(WHOLE, version="1.8.0")
    os.rename(entry.directory, root() / other.key)
    assert get(other) is None


def test_a_full_disk_leaves_nothing_and_says_what_to_do():
    def full(out):
        out.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"No space left.*Free some space"):
        made(full)
    assert entries(root()) == []
    assert list(root().glob(".*partial*")) == []
    assert made(Builder())[1]


def test_a_builder_that_fails_leaves_nothing():
    def fails(out):
        out.write_bytes(b"half")
        raise EngineError("the builder gave up. Try again.")

    with pytest.raises(EngineError, match="gave up"):
        made(fails)
    assert [path.suffix for path in root().iterdir()] == [".lock"]


def test_the_log_of_a_build_that_fails_is_kept_and_named_until_one_succeeds():
    def fails(out):
        out.write_bytes(b"half")
        raise EngineError("the builder gave up. Try again.", log=("warning: it is late", "error: enough"))

    log = root() / f"failed-{WHOLE.key}.log"
    with pytest.raises(EngineError, match=f"the builder gave up. Try again. Read the builder's log: {log}$"):
        made(fails)
    assert log.read_text() == "warning: it is late\nerror: enough\n"
    assert {path.name for path in root().iterdir()} == {log.name, f"{WHOLE.key}.lock"}
    assert entries(root()) == []
    made(Builder())
    assert not log.exists()


def test_where_the_log_cannot_be_kept_the_error_is_the_builders(monkeypatch):
    def fails(out):
        raise EngineError("the builder gave up. Try again.", log=("error: enough",))

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    with pytest.raises(EngineError, match=r"Try again\.$"):
        made(fails)


def _build_slowly(calls, started):
    def slow(out):
        started.set()
        time.sleep(0.5)
        with calls.get_lock():
            calls.value += 1
        return Builder()(out)

    made(slow)


def test_two_processes_build_an_engine_once():
    context = multiprocessing.get_context("fork")
    calls, started = context.Value("i", 0), context.Event()
    processes = [context.Process(target=_build_slowly, args=(calls, started)) for _ in range(2)]
    for process in processes:
        process.start()
    started.wait(10)
    waited = []
    entry, fresh = made(Builder(), waiting=lambda: waited.append(1))
    for process in processes:
        process.join(10)
    assert calls.value == 1
    assert not fresh
    assert waited == [1]
    assert entry.plan.read_bytes() == b"plan"


def test_waiting_for_another_builder_can_be_cancelled():
    waited, builder = [], Builder()
    root().mkdir(parents=True, mode=0o700)
    with FileLock(root() / f"{WHOLE.key}.lock"), pytest.raises(Cancelled, match="Start again"):
        made(builder, waiting=lambda: waited.append(1), cancel=lambda: bool(waited))
    assert waited == [1]
    assert builder.calls == 0
    assert made(builder, cancel=lambda: False)[1]


def _build_for_ever(started):
    def slow(out):
        out.write_bytes(b"half of a plan")
        started.set()
        time.sleep(60)

    made(slow)


def test_a_killed_builder_leaves_no_engine_and_no_lock():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_build_for_ever, args=(started,))
    process.start()
    assert started.wait(10)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert entries(root()) == []
    assert list(root().glob(".*partial*"))
    assert made(Builder())[1]
    assert list(root().glob(".*partial*")) == []
