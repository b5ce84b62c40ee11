"""The command line as a user meets it: whole processes, their output and exit codes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import segue
from segue import cli
from segue.commands import console, render
from segue.runtime.media.provenance import read_file


def run(*arguments: object, cwd: Path, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache or cwd / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "segue.cli", *(str(a) for a in arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def _interruptible() -> None:
    # A background shell starts its children with Ctrl-C ignored, and they would inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def failed(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_render_writes_a_picture_that_says_how_it_was_made(exported: Path, tmp_path: Path) -> None:
    done = run("render", exported, "a red heart", "--seed", 7, "--size", "96x64", "--threads", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "a-red-heart-7.png"
    path = tmp_path / "a-red-heart-7.png"
    with Image.open(path) as picture:
        assert picture.size == (96, 64)
    made = segue.read_metadata(path)
    assert (made["prompt"], made["seed"], made["size"], made["steps"]) == ("a red heart", 7, [64, 96], 4)
    again = run("render", exported, "a red heart", "--seed", 7, "--size", "96x64", "--threads", 1, cwd=tmp_path)
    assert again.stdout.strip() == "a-red-heart-7-2.png"
    assert (tmp_path / "a-red-heart-7-2.png").read_bytes() == path.read_bytes()


def test_several_pictures_are_numbered_and_custom_sigmas_are_taken(exported: Path, tmp_path: Path) -> None:
    options = ("--count", 2, "--sigmas", "1,0.5", "--size", 64, "-o", tmp_path / "h.png", "--json")
    done = run("render", exported, "red", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(e["path"]).name for e in events if e["event"] == "image"] == ["h-1.png", "h-2.png"]
    told = [e for e in events if e["event"] == "progress"]
    assert [e["done"] for e in told] == [1, 2, 3, 4]
    assert all(0 < e["used_MiB"] <= e["planned_MiB"] for e in told)
    assert events[-1]["event"] == "done"


def test_several_pictures_never_overwrite_those_of_an_earlier_run(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "x-0-2.png").write_bytes(b"mine")
    done = run("render", exported, "x", "--count", 2, "--size", 64, "--steps", 1, "--seed", 0, cwd=tmp_path)
    assert done.stdout.split() == ["x-0-2-1.png", "x-0-2-2.png"]
    assert (tmp_path / "x-0-2.png").read_bytes() == b"mine"
    (tmp_path / "y-2.png").mkdir()
    failed(run("render", exported, "y", "--count", 2, "-o", "y.png", cwd=tmp_path), 6, "y-2.png is a directory")
    assert not (tmp_path / "y-1.png").exists()


def test_a_cut_prompt_is_warned_of(exported: Path, tmp_path: Path) -> None:
    done = run("render", exported, "words " * 30 + "tail", "--size", 64, "--steps", 1, cwd=tmp_path)
    assert done.returncode == 0
    assert "Warning: a prompt is longer than 24 tokens" in done.stderr
    assert "tail" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("render", "nothing", "x"), 2, ("no bundle 'nothing'", "shipped bundle (")),
        (("render", ".", "x"), 3, ("no bundle.json", "segue export")),
        (("render", "BUNDLE", "x", "--steps", -3), 2, ("-3",)),
        (("render", "BUNDLE", "x", "--size", "100"), 2, ("100", "Try")),
        (("render", "BUNDLE", "x", "--size", "104x64"), 2, ("104x64 (width x height)", "Try 112x64")),
        (("render", "BUNDLE", "x", "--size", "big"), 2, ("'big' is not a size", "192x128")),
        (("render", "BUNDLE", "x", "--count", 0), 2, ("--count",)),
        (("render", "BUNDLE", "x", "--count", 10**12), 2, ("--count", "4096")),
        (("render", "BUNDLE", "x", "--count", 2, "-o", "."), 6, ("is a directory",)),
        (("render", "BUNDLE", "x", "--threads", 10**6), 2, ("got 1000000",)),
        (("render", "BUNDLE", "x", "--sigmas", "1,a"), 2, ("is not a list of noise levels",)),
        (("render", "BUNDLE", "x", "--seed", -1), 2, ("-1",)),
        (("render", "BUNDLE", "x", "-o", "nowhere/x.png"), 6, ("nowhere does not exist", "mkdir")),
        (("render", "BUNDLE", "x", "-o", "x.gif"), 2, ("x.gif must end in .png, .jpg, .jpeg or .webp", "x.png")),
        (("render", "BUNDLE", "x", "-o", "-", "--count", 2), 2, ("Name a file",)),
        (("demo", "-o", "sheet.jpg"), 2, ("sheet.jpg must end in .png",)),
        (("render", "BUNDLE"), 2, ("PROMPT is missing. Write: segue render", '"a red heart"')),
        (("render", "a red heart"), 2, ('Write: segue render emoji "a red heart"',)),
        (("render", "pizza"), 2, ("got only 'pizza'. Write: segue render emoji pizza",)),
        (("animate", "heart.png", "-o", "x.mp4"), 2, ("Write: segue animate emoji-motion heart.png",)),
        (("export", ".", "-o", "out"), 4, ("model_index.json",)),
        (("train", "nothing"), 8, ("no recipe 'nothing'",)),
        (("unknown",), 2, ("unknown",)),
        (("render", "BUNDLE", "a", "red", "heart"), 2, ("several words in quotes",)),
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
    assert (manifest["event"], manifest["name"]) == ("manifest", "tiny")
    assert manifest["family"] == "sd3"
    assert all(p["relative_l2"] < p["gate"] for p in manifest["parity"])
    done = run("verify", exported, cwd=tmp_path)
    assert done.returncode == 0
    assert "match bundle.json" in done.stdout


def test_verify_tells_how_far_it_is(exported: Path, tmp_path: Path) -> None:
    done = run("verify", exported, "--json", cwd=tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    progress = [(e["done"], e["total"]) for e in events if e["event"] == "progress"]
    total = sum(path.stat().st_size for path in exported.rglob("*") if path.name != "bundle.json" and path.is_file())
    assert {size for _, size in progress} == {total}
    assert progress[-1][0] == total
    assert events[-1]["event"] == "verified"


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (("inspect", "nothing"), "UsageError", 2),
        (("inspect", "."), "BundleError", 3),
        (("inspect",), "UsageError", 2),
        (("render", "nothing", "x", "-o", "nowhere/x.png"), "OutputError", 6),
    ],
)
def test_a_failure_is_an_event_where_json_was_asked_for(
    arguments: tuple[str, ...], kind: str, code: int, tmp_path: Path
) -> None:
    done = run(*arguments, "--json", cwd=tmp_path)
    event = json.loads(done.stdout)
    assert done.returncode == code
    assert event == {"event": "error", "kind": kind, "exit_code": code, "text": event["text"]}
    assert event["text"] in done.stderr


def test_a_closed_standard_output_is_no_success(exported: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for options in (["--json"], []):
        done = subprocess.run(
            [sys.executable, "-m", "segue.cli", "inspect", str(exported), *options],
            cwd=tmp_path,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert (done.returncode, done.stderr) == (141, "")
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
def test_a_full_standard_output_is_said(exported: Path, tmp_path: Path) -> None:
    for options in (["--json"], []):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "segue.cli", "inspect", str(exported), *options],
                cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert done.returncode == 6, done.stderr
        assert "standard output cannot be written" in done.stderr


def test_a_program_without_a_console_renders_all_the_same(exported: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m segue.cli render {exported} x --size 64 --steps 1 -o x.png 1>&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=tmp_path).returncode == 0
    assert (tmp_path / "x.png").exists()


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


def interrupted(options: list[object], after: str, cwd: Path) -> tuple[int, str]:
    """Run segue, press Ctrl-C soon after the first event of that name, and return the exit code and standard error."""
    child = subprocess.Popen(
        [sys.executable, "-m", "segue.cli", *(str(option) for option in options), "--json"],
        preexec_fn=_interruptible,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")},
    )
    assert child.stdout is not None
    while json.loads(child.stdout.readline())["event"] != after:
        pass
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    return child.returncode, errors


def test_ctrl_c_stops_cleanly_and_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    code, errors = interrupted(["render", exported, "red", "--steps", 1000, "-o", "x.png"], "progress", tmp_path)
    assert code == 130
    assert "Stopped" in errors
    assert "Traceback" not in errors
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_ctrl_c_keeps_the_pictures_that_are_done(exported: Path, tmp_path: Path) -> None:
    options = ["render", exported, "red", "--steps", 10, "--size", 64, "--count", 500, "-o", "x.png"]
    code, _ = interrupted(options, "image", tmp_path)
    assert code == 130
    assert segue.read_metadata(tmp_path / "x-1.png")["index"] == 0
    assert not (tmp_path / "x-500.png").exists()


def test_the_sheet_of_demo_names_its_prompts_and_their_places(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Path(segue.__file__).parent / "bundles/emoji-motion"
    monkeypatch.setattr("segue.runtime.bundle.reader.shipped", lambda: {"emoji": exported, "emoji-motion": moving})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = CliRunner().invoke(cli.cli, ["demo", "-o", str(tmp_path / "sheet.png")])
    assert done.exit_code == 0, done.output
    made = segue.read_metadata(tmp_path / "sheet.png")
    assert made["prompts"] == [prompt for prompt, _ in render.DEMO]
    assert made["seeds"] == [seed for _, seed in render.DEMO]
    assert made["layout"] == {"rows": 2, "columns": 3}
    height, width = made["size"]
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (3 * width, 2 * height)
    clip = read_file(tmp_path / "sheet.mp4")["metadata"]
    assert (clip["prompt"], clip["frames"]) == (render.DEMO[render.MOVING][0], render.CLIP_FRAMES)
    *_, took, following, first, second, third = done.output.splitlines()
    assert took.startswith("The demo took ")
    assert "MiB of memory" in took
    assert following == "Try next:"
    for line in (first, second, third):
        name, *words = shlex.split(line.split("  ")[1])
        assert name == "segue"
        cli.cli.commands[words[0]].make_context(words[0], words[1:])


def test_a_seed_is_drawn_and_told_if_none_is_given(exported: Path, tmp_path: Path) -> None:
    options = ("--size", 64, "--steps", 1, "-o", "x.png")
    seeds = set()
    for _ in range(3):
        done = run("render", exported, "red", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "x.png\n"
        (seed,) = re.findall(r"^The seed was (\d+)\. Draw the same again with --seed \1\.$", done.stderr, re.MULTILINE)
        assert segue.read_metadata(tmp_path / "x.png")["seed"] == int(seed) < 2**32
        seeds.add(seed)
    assert len(seeds) == 3
    first = (tmp_path / "x.png").read_bytes()
    run("render", exported, "red", *options, "--seed", seed, cwd=tmp_path)
    assert (tmp_path / "x.png").read_bytes() == first
    done = run("render", exported, "red", *options, "--json", cwd=tmp_path)
    image, end = [json.loads(line) for line in done.stdout.splitlines()][-2:]
    assert image["seed"] == end["seed"]
    assert "seed was" not in done.stderr


def test_a_picture_can_go_to_standard_output(exported: Path, tmp_path: Path) -> None:
    options = ("--size", 64, "--steps", 1, "--seed", 5)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "segue.cli", "render", str(exported), "red", "-o", "-", *map(str, options)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert run("render", exported, "red", "-o", "x", *options, cwd=tmp_path).stdout == "x.png\n"
    assert (tmp_path / "x.png").read_bytes() == done.stdout


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "webp"])
def test_other_formats_tell_their_origin_too(exported: Path, tmp_path: Path, ending: str) -> None:
    options = ("--size", 64, "--steps", 1, "--seed", 5, "-o", f"x.{ending}")
    assert run("render", exported, "a rød heart", *options, cwd=tmp_path).returncode == 0
    with Image.open(tmp_path / f"x.{ending}") as picture:
        assert (picture.format, picture.size) == ("WEBP" if ending == "webp" else "JPEG", (64, 64))
    shown = run("show", f"x.{ending}", cwd=tmp_path)
    assert "a rød heart" in shown.stdout
    assert run("render", exported, "a rød heart", *options, "--no-metadata", cwd=tmp_path).returncode == 0
    assert "holds no metadata" in run("show", f"x.{ending}", cwd=tmp_path).stdout


def test_a_prompt_of_emoji_or_chinese_gives_a_readable_name(exported: Path, tmp_path: Path) -> None:
    options = ("--size", 64, "--steps", 1, "--seed", 5)
    assert run("render", exported, "für Jörg", *options, cwd=tmp_path).stdout == "für-jörg-5.png\n"
    assert run("render", exported, "一只猫", *options, cwd=tmp_path).stdout == "一只猫-5.png\n"
    assert run("render", "emoji", "🍕", *options, cwd=tmp_path).stdout == "pizza-5.png\n"


def test_each_stage_has_a_task_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Output(as_json=True).stages() as update:
        update("copy", "bytes", 5, 9)
        update("copy", "bytes", 9, 9)
        update("trace", "graphs", 0, 4)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(e["task"], e["done"], e["total"]) for e in events] == [("copy", 5, 9), ("copy", 9, 9), ("trace", 0, 4)]


def test_version_is_told(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.startswith("segue ")


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> set[str]:
    """Return what bash gets for the last word of a line."""
    monkeypatch.setenv("_SEGUE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    return set(CliRunner().invoke(cli.cli, [], prog_name="segue").output.split())


def test_a_shell_completes_the_names_of_shipped_bundles(monkeypatch):
    assert completed(monkeypatch, "segue render emoji-") == {"plain,emoji-teacher", "plain,emoji-motion", "dir,emoji-"}


def test_a_shell_completes_recipes_and_devices(monkeypatch):
    assert completed(monkeypatch, "segue train emoji-t") == {"plain,emoji-teacher", "plain,emoji-text"}
    assert "plain,rtx4090" in completed(monkeypatch, "segue plan emoji --device rtx")
    assert completed(monkeypatch, "segue plan emoji --device th") == {"plain,this"}
    assert "plain,rtx4090" in completed(monkeypatch, "segue build emoji --device rtx4")
