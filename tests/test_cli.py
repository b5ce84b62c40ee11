"""The command line as a user meets it: whole processes, their output and exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import segue


def run(*arguments: object, cwd: Path, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache or cwd / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "segue.cli", *(str(a) for a in arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def failed(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_render_writes_a_picture_that_says_how_it_was_made(exported: Path, tmp_path: Path) -> None:
    done = run("render", exported, "a red heart", "--seed", 7, "--size", "64x96", "--threads", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "a-red-heart-7.png"
    path = tmp_path / "a-red-heart-7.png"
    with Image.open(path) as picture:
        assert picture.size == (96, 64)
    made = segue.read_metadata(path)
    assert (made["prompt"], made["seed"], made["size"], made["steps"]) == ("a red heart", 7, [64, 96], 4)
    again = run("render", exported, "a red heart", "--seed", 7, "--size", "64x96", "--threads", 1, cwd=tmp_path)
    assert again.stdout.strip() == "a-red-heart-7-2.png"
    assert (tmp_path / "a-red-heart-7-2.png").read_bytes() == path.read_bytes()


def test_several_pictures_are_numbered_and_custom_sigmas_are_taken(exported: Path, tmp_path: Path) -> None:
    options = ("--count", 2, "--sigmas", "1,0.5", "--size", 64, "-o", tmp_path / "h.png", "--json")
    done = run("render", exported, "red", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(e["path"]).name for e in events if e["event"] == "image"] == ["h-1.png", "h-2.png"]
    assert [e["done"] for e in events if e["event"] == "progress"] == [1, 2, 3, 4]
    assert events[-1]["event"] == "done"


def test_a_cut_prompt_is_warned_of(exported: Path, tmp_path: Path) -> None:
    done = run("render", exported, "words " * 30 + "tail", "--size", 64, "--steps", 1, cwd=tmp_path)
    assert done.returncode == 0
    assert "Warning: a prompt is longer than 24 tokens" in done.stderr
    assert "tail" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("render", "nothing", "x"), 2, ("no bundle 'nothing'", "shipped bundles")),
        (("render", ".", "x"), 3, ("no bundle.json", "segue export")),
        (("render", "BUNDLE", "x", "--steps", -3), 2, ("-3",)),
        (("render", "BUNDLE", "x", "--size", "100"), 2, ("100", "Try")),
        (("render", "BUNDLE", "x", "--size", "big"), 2, ("'big' is no size",)),
        (("render", "BUNDLE", "x", "--sigmas", "1,a"), 2, ("no list of noise levels",)),
        (("render", "BUNDLE", "x", "--seed", -1), 2, ("-1",)),
        (("render", "BUNDLE", "x", "-o", "nowhere/x.png"), 6, ("nowhere does not exist", "mkdir")),
        (("render", "BUNDLE"), 2, ("PROMPT",)),
        (("export", ".", "-o", "out"), 4, ("model_index.json",)),
        (("train", "nothing"), 8, ("no recipe 'nothing'",)),
        (("unknown",), 2, ("unknown",)),
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(
    arguments: tuple[object, ...], code: int, parts: tuple[str, ...], exported: Path, tmp_path: Path
) -> None:
    failed(run(*(exported if a == "BUNDLE" else a for a in arguments), cwd=tmp_path), code, *parts)
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


def test_inspect_and_verify_describe_a_bundle(exported: Path, tmp_path: Path) -> None:
    shown = run("inspect", exported, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "transformer" in shown.stdout
    assert "parity" in shown.stdout
    manifest = json.loads(run("inspect", exported, "--json", cwd=tmp_path).stdout)
    assert manifest["family"] == "sd3"
    assert all(p["relative_l2"] < p["gate"] for p in manifest["parity"])
    done = run("verify", exported, cwd=tmp_path)
    assert done.returncode == 0
    assert "are as bundle.json says" in done.stdout


def test_verify_names_an_altered_file_and_both_hashes(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    failed(run("verify", copy, cwd=tmp_path), 3, "vae/diffusion_pytorch_model.safetensors", "was altered", "sha256 is")
    assert run("verify", exported, cwd=tmp_path).returncode == 0


def test_unpack_gives_the_checkpoint_back(exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = run("unpack", exported, "-o", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for path in tiny_checkpoint.rglob("*.safetensors"):
        assert (tmp_path / "again" / path.relative_to(tiny_checkpoint)).read_bytes() == path.read_bytes()


def test_ctrl_c_stops_cleanly_and_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "segue.cli",
        "render",
        str(exported),
        "red",
        "--steps",
        "1000",
        "--json",
        "-o",
        "x.png",
    ]
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert child.stdout is not None
    child.stdout.readline()  # the first step is done
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Stopped" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "x.png").exists()


def test_version_is_told(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.startswith("segue ")
