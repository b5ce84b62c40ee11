"""The commands about engines as a user meets them."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from segue import cli
from segue.engines.targets import TARGETS, Target
from segue.errors import EngineError, OutputError, ParityError, UsageError
from segue.runtime.bundle.reader import read
from segue.runtime.components import Components
from segue.runtime.engine_cache import store, upkeep


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments):
    """Return the exit code, the events and the text of a command."""
    result = CliRunner().invoke(cli.cli, [str(a) for a in arguments], standalone_mode=False)
    return result


def events(result):
    assert result.exception is None, result.exception
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_build_list_verify_and_clear(half: Path) -> None:
    options = ("--sm", 89, "--shapes", 64, "--component", "text_encoder", "--json")
    made = [e for e in events(run("build", half, *options)) if e["event"] == "engine"]
    assert [(e["component"], e["built"]) for e in made] == [("text_encoder", True)]
    assert Path(made[0]["path"]).is_file()
    kept = [e for e in events(run("build", half, *options)) if e["event"] == "engine"]
    assert [(e["path"], e["built"]) for e in kept] == [(made[0]["path"], False)]
    (listed,) = [e for e in events(run("cache", "list", "--json")) if e["event"] == "engine"]
    assert listed["fingerprint"]["capabilities"] == [89]
    assert events(run("cache", "verify", "--json"))[-1] == {"event": "verified", "engines": 1, "damaged": 0}
    Path(made[0]["path"]).write_bytes(b"evil")
    damaged = run("cache", "verify")
    assert damaged.exception is not None
    assert damaged.exception.exit_code == 9
    assert "was altered" in damaged.stdout
    assert "Run segue build" in str(damaged.exception)
    assert [e["built"] for e in events(run("build", half, *options)) if e["event"] == "engine"] == [True]
    assert events(run("cache", "verify", "--json"))[-1] == {"event": "verified", "engines": 1, "damaged": 0}
    record = Path(made[0]["path"]).with_name(store.RECORD)
    record.write_text(record.read_text().replace('"schema": 1', '"schema": 0'))
    (unreadable,) = [e for e in events(run("cache", "list", "--json")) if e["event"] == "unreadable"]
    assert unreadable["path"] == str(record.parent)
    for command in ("list", "verify"):
        assert "its record has schema 0" in run("cache", command).stdout
    refused = run("cache", "clear", "--json")
    assert isinstance(refused.exception, UsageError)
    assert re.search(r"removes engines \(\d\.\d MB\).*digests of verified files.*Add --yes", str(refused.exception))
    assert record.is_file()
    cleared = events(run("cache", "clear", "--yes", "--json"))[-1]
    assert (cleared["engines"], cleared["bytes"] > 10_000) == (1, True)
    assert events(run("cache", "list", "--json")) == []
    assert events(run("cache", "clear", "--json"))[-1] == {"event": "cleared", "engines": 0, "bytes": 0}


@pytest.mark.parametrize("option", [("--sm", "89"), ("--device", "rtx4090")])
def test_engines_are_built_for_a_capability_or_a_gpu_by_its_name(half: Path, option: tuple[str, str]) -> None:
    made = run("build", str(half), *option, "--shapes", "64", "--component", "transformer_step", "--json")
    (engine,) = [event for event in events(made) if event["event"] == "engine"]
    assert engine["fingerprint"]["capabilities"] == [89]


def test_a_gpu_that_is_not_known_or_has_no_builder_is_refused(half: Path) -> None:
    refused = str(run("build", str(half), "--device", "rtx1").exception)
    assert "rtx1" in refused
    assert "rtx4060" in refused
    assert "got [90]" in str(run("build", str(half), "--device", "h100").exception)


@pytest.mark.slow
def test_export_goes_on_to_engines(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--no-parity", "--precision", "fp16", "--target", "tensorrt-rtx", "--sm", "89", "--shapes", "64"]
    told = events(run("export", str(tiny_checkpoint), "-o", str(tmp_path / "made"), *options, "--json"))
    built = [event["component"] for event in told if event["event"] == "engine"]
    assert built == list(read(tmp_path / "made").manifest.components)


def test_a_target_that_runs_graphs_as_they_are_loads_each_of_them() -> None:
    loaded = [e for e in events(run("build", "emoji", "--target", "ort-cpu", "--json")) if e["event"] == "loaded"]
    assert [e["component"] for e in loaded] == list(read("emoji").manifest.components)
    refused = run("build", "emoji", "--sm", "89", "--into-bundle")
    assert "is shipped with Segue" in str(refused.exception)
    refused = run("build", "emoji", "--target", "ort-cpu", "--into-bundle")
    assert "ort-cpu builds no engines, so --into-bundle does not apply" in str(refused.exception)


def test_doctor_finds_no_fault_here_and_shows_a_table(half: Path) -> None:
    shown = run("doctor", half)
    assert shown.exception is None
    assert "ort-cpu" in shown.stdout
    told = events(run("doctor", half, "--json"))
    states = {e["subject"]: e["state"] for e in told if e["event"] == "finding"}
    assert told[-1] == {"event": "verdict", "text": "This machine runs ort-cpu. tiny runs on ort-cpu."}
    assert states["ONNX Runtime"] == "ok"


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a target that works on every machine beside ort-cpu, of the same provider; there is no other."""
    for name in TARGETS.keys() - {"ort-cpu"}:
        monkeypatch.delitem(TARGETS, name)
    monkeypatch.setitem(TARGETS, "again", Target("again", "onnxruntime", "", False, "cpu", TARGETS["ort-cpu"].provider))
    return "again"


@pytest.fixture
def astray(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second target's denoiser gives twice what it should."""
    plain = Components.run

    def run(self: Components, component: str, *arguments, **feeds):
        made = plain(self, component, *arguments, **feeds)
        twice = component == "transformer" and self._target.name == second
        return {name: array * np.float32(2) for name, array in made.items()} if twice else made

    monkeypatch.setattr(Components, "run", run)


def test_what_runs_here_is_compared_in_a_table_and_the_report_is_kept(second: str, tmp_path: Path) -> None:
    shown = run("verify", "emoji", "--engines")
    assert shown.exception is None
    assert f"{second} compared with ort-cpu: pixels equal" in shown.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.stdout.splitlines() if "│" in line]
    assert ["transformer", "0.0e+00", "0.0e+00", "0.02", ""] in rows
    assert [row for row in rows if row[0].startswith("picture, step")][-1] == [
        "picture, step 4",
        "0.0e+00",
        "",
        "",
        "1.00",
    ]
    (report,) = (tmp_path / "cache").rglob("parity/*.json")
    assert report.stem == read("emoji").digest
    assert f"written to {report}" in shown.stdout.replace("\n", "")
    assert json.loads(report.read_text())["found"][0]["target"] == second


def test_a_comparison_is_an_event_for_programs(second: str) -> None:
    (found,) = [e for e in events(run("verify", "emoji", "--engines", "--json")) if e["event"] == "comparison"]
    assert found["target"] == second
    assert set(found["components"]) == set(read("emoji").manifest.components)  # also the encoder, which draws nothing
    assert (found["steps"], found["growth"]) == ({"picture": [0.0] * 4}, {"picture": 1.0})


@pytest.mark.usefixtures("astray")
def test_a_target_beyond_its_gate_ends_the_command_after_the_report_is_kept(second: str, tmp_path: Path) -> None:
    failed = run("verify", "emoji", "--engines")
    assert isinstance(failed.exception, ParityError)
    assert failed.exception.exit_code == 5
    assert f"{second}: transformer differs by 1.0e+00 (gate 0.02)" in str(failed.exception)
    (report,) = (tmp_path / "cache").rglob("parity/*.json")
    assert json.loads(report.read_text())["found"][0]["components"]["transformer"]["relative_l2"] == pytest.approx(1)


def test_a_target_that_fails_is_told_and_ends_no_other(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Components._open

    def opened(self: Components, component: str, shapes):
        if self._target.name == "broken":
            raise EngineError("there is no engine of it. Run segue build.")
        return plain(self, component, shapes)

    monkeypatch.setattr(Components, "_open", opened)
    monkeypatch.setitem(TARGETS, "broken", replace(TARGETS[second], name="broken"))
    told = events(run("verify", "emoji", "--engines", "--json"))
    found = {e["target"]: e for e in told if e["event"] == "comparison"}
    assert found["broken"]["why"] == "there is no engine of it. Run segue build."
    assert (found[second]["psnr"], found[second]["why"]) == (None, "")
    monkeypatch.delitem(TARGETS, second)
    failed = run("verify", "emoji", "--engines")
    assert failed.exception.exit_code == 9
    assert "no target of broken runs this bundle: there is no engine of it" in str(failed.exception)


@pytest.mark.usefixtures("second")
def test_where_nothing_but_the_processor_runs_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TARGETS, "again")
    failed = run("verify", "emoji", "--engines")
    assert isinstance(failed.exception, EngineError)
    assert failed.exception.exit_code == 9
    assert "only ort-cpu runs here" in str(failed.exception)
    assert "Run segue doctor" in str(failed.exception)


@pytest.mark.parametrize("text", ["128x", "64..96..128..160", "a..b"])
def test_shapes_that_are_none_are_refused(half: Path, text: str) -> None:
    failed = run("build", half, "--sm", 89, "--shapes", text)
    assert "is not a size or range" in str(failed.exception)


def test_amounts_of_memory_have_units() -> None:
    from segue.commands.options import Bytes

    convert = Bytes().convert
    assert [convert(t, None, None) for t in ("8GiB", "1.5 MB", "77B", "3000000")] == [
        8 * 2**30,
        1_500_000,
        77,
        3_000_000,
    ]
    for text in ("8 gigs", "0", "GiB"):
        with pytest.raises(Exception, match="is not an amount of memory"):
            convert(text, None, None)
    with pytest.raises(Exception, match=r"'8' means 8 bytes\. Write 8GiB"):
        convert("8", None, None)


def building(component: str, **options: Any) -> subprocess.Popen[str]:
    """Start `segue build` of one component of the emoji bundle, in a process of its own."""
    command = [sys.executable, "-m", "segue", "build", "emoji", "--sm", "89", "--component", component]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def left() -> list[Path]:
    """Return what is in the cache of engines, locks left out."""
    return [path for path in store.root().iterdir() if path.suffix != ".lock"]


@pytest.mark.skipif(os.name == "nt", reason="limits of files are POSIX's")
def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing_of_the_engine() -> None:
    import resource

    def little() -> None:  # the kernel refuses the write that passes it, in the builder's process too
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))

    process = building("transformer_step", preexec_fn=little)  # an engine of 159 kB
    _, said = process.communicate(timeout=300)
    assert process.returncode == OutputError.exit_code
    assert "File too large" in said
    assert "Free some space" in said
    assert "Traceback" not in said
    assert left() == []
    assert building("transformer_step").wait(300) == 0
    assert upkeep.verify(store.root()) == (1, [])


@pytest.mark.skipif(os.name == "nt", reason="POSIX's signals")
def test_a_build_that_is_killed_leaves_no_engine_no_builder_and_no_lock() -> None:
    process = building("vae_decoder")
    deadline = time.monotonic() + 300
    while not list(store.root().glob(f".*.partial-*/*/{store.PLAN}")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    builders = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert builders
    assert psutil.wait_procs(builders, timeout=120)[1] == []
    assert store.entries(store.root()) == []
    assert left()
    assert building("vae_decoder").wait(300) == 0
    assert upkeep.verify(store.root()) == (1, [])
    assert left() == [store.entries(store.root())[0].directory]
