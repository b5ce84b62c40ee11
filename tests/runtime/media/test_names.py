"""Names of pictures: readable in every script, safe on every system, and never those of another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segue.errors import OutputError, UsageError
from segue.runtime.media import names
from segue.runtime.media.names import file_words, given_names, new_names, with_ending


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red heart", "a-red-heart"),
        ("für Jörg", "für-jörg"),
        ("fu\u0308r Jo\u0308rg", "für-jörg"),  # the same letters, as macOS decomposes them
        ("一只红色的猫", "一只红色的猫"),
        ("красное сердце!", "красное-сердце"),
        ("नमस्ते", "नमस्ते"),
        ("pizza 🍕", "pizza-slice-of-pizza"),
        ("❤️", "heavy-black-heart"),
        ("🇩🇪", "d-e"),
        ("../../etc/passwd", "etc-passwd"),
        ('a\\b:c*d?e"f<g>h|i', "a-b-c-d-e-f-g-h-i"),
        ("tail. ", "tail"),
        ("\u202egnp", "gnp"),
        ("\ud800x", "x"),
        ("", "picture"),
        ("...", "picture"),
        ("\u0301", "picture"),
    ],
)
def test_a_prompt_becomes_words_that_any_system_takes(text, words):
    assert file_words(text) == words


def test_words_are_bounded_in_bytes_and_never_cut_inside_a_letter():
    assert file_words("红" * 500) == "红" * 26
    assert file_words("x" * 500) == "x" * names.MOST
    assert file_words("x" * 79 + " tail") == "x" * 79


def test_letters_that_the_systems_encoding_lacks_are_left_out(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1"))
    assert file_words("ein Herz für 红") == "ein-herz-f-r"
    assert file_words("红") == "picture"
    assert file_words("für Jörg") == "für-jörg"


def test_new_names_pass_over_files_that_are_there(folder):
    (folder / "x-0.png").write_bytes(b"mine")
    with new_names("x", 0, 1) as paths:
        assert paths == [Path("x-0-2.png")]
    with new_names("x", 0, 2) as paths:
        assert paths == [Path("x-0-1.png"), Path("x-0-2.png")]
    (folder / "x-0-2.png").write_bytes(b"mine")
    (folder / "x-0-2-1.png").symlink_to("nowhere")
    with new_names("x", 0, 2) as paths:
        assert paths == [Path("x-0-3-1.png"), Path("x-0-3-2.png")]


def test_names_are_reserved_until_the_block_ends_and_leave_nothing(folder):
    with new_names("x", 5, 1) as first, new_names("x", 5, 1) as second, new_names("x", 5, 2) as third:
        assert [*first, *second] == [Path("x-5.png"), Path("x-5-2.png")]
        assert third == [Path("x-5-2-1.png"), Path("x-5-2-2.png")]  # x-5-1.png is free, but x-5-2.png is not
        assert not list(folder.glob("*.png"))
    with pytest.raises(RuntimeError), new_names("x", 5, 1):
        raise RuntimeError
    assert os.listdir(folder) == []


def test_many_processes_never_choose_the_same_name(folder):
    program = (
        "import sys\nfrom segue.runtime.media.names import new_names\nfor number in range(20):\n"
        "    with new_names('心 x', 7, 1 + number % 2) as paths:\n"
        "        for path in paths:\n            path.open('xb').close(); print(path.name)\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1"},
        )
        for _ in range(3)
    ]
    chosen = [name for process in running for name in process.communicate(timeout=120)[0].split()]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(chosen) == 90
    assert sorted(chosen) == sorted(set(chosen)) == sorted(os.listdir(folder))


def test_a_name_without_an_ending_gets_one_and_a_wrong_one_is_refused(folder):
    assert with_ending(Path("pizza")) == Path("pizza.png")
    assert with_ending(Path("pizza.JPG")) == Path("pizza.JPG")
    with pytest.raises(UsageError, match=r"pizza\.gif must end in \.png, \.jpg, \.jpeg or \.webp\. Name it pizza\.png"):
        with_ending(Path("pizza.gif"))
    with pytest.raises(UsageError, match=r"must end in \.png\."):
        with_ending(Path("sheet.webp"), (".png",))


def test_a_given_name_is_numbered_and_checked(folder):
    assert given_names(Path("x"), 1) == [Path("x.png")]
    assert given_names(Path("x.webp"), 2) == [Path("x-1.webp"), Path("x-2.webp")]
    (folder / "y-2.png").mkdir()
    with pytest.raises(OutputError, match=r"y-2\.png is a directory"):
        given_names(Path("y.png"), 2)
    with pytest.raises(OutputError, match="is a directory"):
        given_names(Path("."), 1)
    with pytest.raises(OutputError, match="nowhere does not exist"):
        given_names(Path("nowhere/x"), 1)
