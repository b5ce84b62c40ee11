"""An export appears whole or not at all, and its memory does not grow with the weights."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from segue.errors import OutputError
from segue.runtime.storage.directory import NewDirectory

EXPORT = """
import sys
from pathlib import Path
from segue.export.export import export
export(Path(sys.argv[1]), Path(sys.argv[2]), progress=lambda e: print(e.stage, flush=True))
"""

MEMORY = """
import json, sys
from pathlib import Path
from segue.export.export import export

class Enough(Exception):
    pass

def stop(event):
    # The first graph is attached to the padded file and written when the second is announced.
    if event.stage == "trace" and event.done == 1:
        raise Enough

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

peaks = []
for source, precision in [(1, "keep"), (2, "keep"), (2, "fp16")]:
    try:
        export(Path(sys.argv[source]), Path(sys.argv[3]), precision=precision, parity=False, progress=stop)
    except Enough:
        peaks.append(peak())
print(json.dumps(peaks))
"""


def start(code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("stage", ["copy", "trace"])
def test_a_killed_export_leaves_no_visible_bundle_and_the_next_one_cleans_up(tiny_checkpoint, tmp_path, stage):
    child = start(EXPORT, tiny_checkpoint, tmp_path / "bundle")
    for line in child.stdout:
        if line.strip() == stage:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    leavings = list(tmp_path.iterdir())
    assert [p.name.startswith(".bundle.partial-") for p in leavings] == [True]
    assert not (leavings[0] / "bundle.json").exists()
    with NewDirectory(tmp_path / "bundle") as new:
        assert not leavings[0].exists()
        (new.path / "x").write_text("")
        new.commit()
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_an_interrupted_export_removes_what_it_wrote(tiny_checkpoint, tmp_path):
    from segue.export.export import export

    def interrupt(event):
        if event.stage == "tokenizer":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, tmp_path / "bundle", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_place_leave_each_other_alone(tmp_path):
    with NewDirectory(tmp_path / "a") as first:
        (first.path / "one").write_text("")
        with NewDirectory(tmp_path / "a") as second:
            assert first.path.exists()
            first.commit()
            with pytest.raises(OutputError, match="exists already"):
                second.commit()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["one"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written to"), NewDirectory(tmp_path / "file/bundle"):
        pass


@pytest.mark.parametrize(
    ("error", "name", "expected"),
    [
        (errno.ENOSPC, None, OutputError),
        (errno.EACCES, "below", OutputError),
        (errno.EACCES, "source", PermissionError),
        (errno.EPIPE, None, BrokenPipeError),
        (errno.EIO, None, OSError),
    ],
)
def test_only_a_write_that_failed_is_reported_as_one(tmp_path, error, name, expected):
    new = NewDirectory(tmp_path / "a")
    with pytest.raises(expected) as caught, new:
        raise OSError(error, "", name and str((new.path if name == "below" else tmp_path) / "x"))
    assert isinstance(caught.value, OutputError) == (expected is OutputError)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_no_pattern(tmp_path):
    kept = tmp_path / ".abc.partial-x"
    kept.mkdir()
    for name in ("a*c", "a?c", "a[b]c"):
        with NewDirectory(tmp_path / name) as new:
            new.commit()
    assert kept.exists()


@pytest.mark.parametrize("at", ["removed", "held"])
def test_a_directory_that_another_export_takes_for_a_dead_ones_is_made_anew(tmp_path, monkeypatch, at):
    make, made = tempfile.mkdtemp, []

    def meet(**options):
        made.append(make(**options))
        if len(made) == 1 and at == "removed":
            os.rmdir(made[0])
        elif len(made) == 1:
            held.append(FileLock(Path(made[0], "lock")))
            held[0].acquire()
        return made[-1]

    held = []
    monkeypatch.setattr(tempfile, "mkdtemp", meet)
    with NewDirectory(tmp_path / "a") as new:
        (new.path / "x").write_text("")
        new.commit()
    assert len(made) == 2
    assert (tmp_path / "a/x").exists()
    for lock in held:
        lock.release()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM from /proc")
def test_peak_memory_does_not_grow_with_the_weights(tiny_checkpoint, tmp_path):
    import shutil

    padded = tmp_path / "padded"
    shutil.copytree(tiny_checkpoint, padded)
    path = padded / "text_encoder/model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    padding = 300 * 2**20
    entry = {"dtype": "F32", "shape": [padding // 4], "data_offsets": [len(body), len(body) + padding]}
    text = json.dumps(table | {"padding": entry}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + body)
        file.truncate(8 + len(text) + len(body) + padding)
    plain, kept, converted = json.loads(start(MEMORY, tiny_checkpoint, padded, tmp_path / "bundle").communicate()[0])
    assert kept - plain < 60_000  # kB, of 300 MB
    assert converted - plain < 100_000


def test_a_directory_gives_way_only_to_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").write_text("old")
    with NewDirectory(tmp_path / "a", replace=True) as new:
        (new.path / "half").write_text("half")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]
    with NewDirectory(tmp_path / "a", replace=True) as new:
        (new.path / "new").write_text("new")
        assert (tmp_path / "a/old").is_file()
        new.commit()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_directory_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").write_text("old")
    rename = os.rename

    def refuse(source: object, target: object) -> None:
        if ".partial-" in str(source):
            raise error
        rename(source, target)  # type: ignore[arg-type]

    with NewDirectory(tmp_path / "a", replace=True) as new:
        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            new.commit()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_that_cannot_be_put_back_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a death between the two renames: the next one to write there finds the old directory."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").write_text("old")
    rename = os.rename

    def refuse(source: object, target: object) -> None:
        if str(target) == str(tmp_path / "a"):
            raise OSError(5, "Input/output error")
        rename(source, target)  # type: ignore[arg-type]

    with NewDirectory(tmp_path / "a", replace=True) as new:
        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises(OutputError, match="cannot be created"):
            new.commit()
    monkeypatch.undo()
    assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.glob(".a.old-*/a/*")] == ["old"]
    with NewDirectory(tmp_path / "a", replace=True):
        assert (tmp_path / "a/old").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
