"""What git makes of files: line ends, pointers of git-lfs, and the attributes that keep a clone's bytes."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from segue.runtime.storage import git

ROOT = Path(git.__file__).resolve().parents[2]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 12345\n"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def run(*arguments, cwd):
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("data", "expected", "words"),
    [
        (b"a\r\nb\r\n", sha(b"a\nb\n"), "differs by its line ends alone"),
        (POINTER, sha(b"weights"), "is a pointer of git-lfs"),
        (POINTER.replace(b"\n", b"\r\n"), sha(b"weights"), "is a pointer of git-lfs"),
        (b"a\r\nc\r\n", sha(b"a\nb\n"), None),
        (b"a\nb\n", sha(b"other"), None),
    ],
)
def test_what_git_did_to_a_file_is_named(tmp_path, data, expected, words):
    (tmp_path / "file").write_bytes(data)
    why = git.explain(tmp_path / "file", expected)
    assert words is None if why is None else words in why[0]


def test_a_clone_with_line_ends_of_windows_holds_the_same_bytes(tmp_path):
    """A repository with this one's attributes and texts of each kind, cloned as git on Windows does."""
    source = tmp_path / "source"
    kept = [
        "bundles/emoji/bundle.json", "bundles/emoji/tokenizer/merges.txt", "bundles/emoji/transformer/step.onnx",
        "bundles/emoji/tokenizer/vocab.json", "runtime/planning/hardware.json", "README.md",
    ]  # fmt: skip
    for name in (".gitattributes", *kept):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    run("init", "-q", ".", cwd=source)
    run("add", ".", cwd=source)
    run("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x", cwd=source)
    run("-c", "core.autocrlf=true", "-c", "core.eol=crlf", "clone", "-q", "source", "clone", cwd=tmp_path)
    for name in kept:
        assert (tmp_path / "clone" / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_line_ends_of_bundles_are_never_converted_and_sources_have_lf():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    told = run("check-attr", "text", "eol", "--", "bundles/emoji/bundle.json", "cli.py", "x.png", cwd=ROOT)
    assert "bundles/emoji/bundle.json: text: unset" in told
    assert "cli.py: eol: lf" in told
    assert "x.png: text: unset" in told
