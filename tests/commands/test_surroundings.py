"""The command line where a machine is set up otherwise: output in cp1252, no home directory, byte order marks."""

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JAPANESE = "心"
UNKNOWN = """
import pwd, sys
def unknown(user):
    raise KeyError(user)
pwd.getpwuid = unknown
from segue.cli import main
main()
"""  # a user whom the system does not know, as in a container


def run(*arguments, cwd, homeless=False, **variables):
    """Run the command line; `homeless` as an unknown user without any variable."""
    kept = {"PATH": os.environ["PATH"]} if homeless else {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")}
    program = ["-c", UNKNOWN] if homeless else ["-m", "segue.cli"]
    command = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=kept | variables, capture_output=True)
    assert b"Traceback" not in done.stderr
    assert done.returncode != 70, done.stderr
    return done


@pytest.fixture
def cp1252(tmp_path):
    """Function that runs the command line as on a Windows whose output is redirected."""
    return lambda *arguments: run(*arguments, cwd=tmp_path, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")


def test_all_pictures_are_written_where_the_output_lacks_the_characters_of_their_names(cp1252, tmp_path):
    done = cp1252("render", "emoji", JAPANESE, "--count", 3, "--seed", 1, "--steps", 1)
    assert done.returncode == 0, done.stderr
    made = sorted(path.name for path in tmp_path.glob("*.png"))
    assert made == [f"{JAPANESE}-1-{i}.png" for i in (1, 2, 3)]
    assert done.stdout.decode("cp1252").split() == [name.replace(JAPANESE, "\\u5fc3") for name in made]
    shown = cp1252("show", made[0])
    assert shown.returncode == 0, shown.stderr
    assert b"\\u5fc3" in shown.stdout


def test_events_are_json_in_every_encoding(cp1252, tmp_path):
    prompt = f"{JAPANESE} é 🍕"
    done = cp1252("render", "emoji", prompt, "--json", "--seed", 1, "--steps", 1, "-o", f"{JAPANESE}é🍕.png")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.decode("cp1252").splitlines()]
    assert [Path(e["path"]).name for e in told if e["event"] == "image"] == [f"{JAPANESE}é🍕.png"]


@pytest.mark.parametrize(
    ("mark", "encoding"), [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (b"", "utf-8")]
)
@pytest.mark.parametrize("text", ['{"prompt": "心", "seed": 1, "steps": 1, "id": "one"}\r\n', "心\r\n"])
def test_a_batch_reads_texts_as_powershell_writes_them(cp1252, tmp_path, mark, encoding, text):
    (tmp_path / "jobs").write_bytes(mark + text.encode(encoding))
    done = cp1252("batch", "jobs", "-o", "out")
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "out").glob("*.png")
    assert made.stem == ("one" if text.startswith("{") else JAPANESE)
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert JAPANESE in json.dumps(row, ensure_ascii=False) or row["id"] == "one"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no list of users")
@pytest.mark.parametrize(
    ("command", "codes", "words"),
    [
        (("cache", "list"), {2}, b"export XDG_CACHE_HOME="),
        (("verify", "emoji", "--engines"), {2, 9}, b"Run segue doctor to see what is missing"),  # here without a GPU
        (("serve", "emoji", "--port", "0"), {2}, b"export XDG_DATA_HOME="),
        (("doctor",), {0, 9}, b"XDG_CACHE_HOME"),
        (("render", "emoji", "heart", "--steps", "1", "--seed", "1"), {0}, b"heart-1.png"),
    ],
)
def test_without_a_home_a_command_works_or_names_the_variable_to_set(tmp_path, command, codes, words):
    done = run(*command, cwd=tmp_path, homeless=True)
    assert done.returncode in codes, done.stderr
    assert words in done.stdout + done.stderr
