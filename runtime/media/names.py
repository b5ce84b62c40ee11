"""The names of pictures: what a user gave, or new ones that are readable, safe on every system, and nobody else's."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import UsageError
from ..storage.files import check_writable, writing
from .formats import FORMATS

MOST = 80  # bytes of a prompt's words in a name: with seed, numbers and temporary endings below any system's limit
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # they choose between forms of a character
_LETTER = "REGIONAL INDICATOR SYMBOL LETTER "  # two of them are a flag


def given_names(output: Path, count: int) -> list[Path]:
    """Return the paths of `count` pictures for the name that a user gave: the name, or NAME-1, NAME-2 and so on.

    A name without an ending gets .png. Raises UsageError for an ending that is no picture's, and OutputError if one of
    the files cannot be made.
    """
    path = with_ending(output)
    check_writable(path)  # also for several pictures, because it may be a directory
    paths = _numbered(path, count)
    for path in paths:
        check_writable(path)
    return paths


def with_ending(path: Path, known: Sequence[str] = tuple(FORMATS)) -> Path:
    """Return `path`, with .png if it has no ending; raises UsageError unless it then ends like one of `known`."""
    if not path.suffix and path.name and not os.path.isdir(path):
        path = path.with_name(f"{path.name}.png")
    if path.suffix.lower() not in known and not os.path.isdir(path):
        raise UsageError(
            f"{path} must end in {', '.join(known[:-1])}{' or ' if known[:-1] else ''}{known[-1]}.",
            f"Name it {path.stem}.png, or choose another of these endings.",
        )
    return path


@contextlib.contextmanager
def new_names(text: str, seed: int, count: int) -> Iterator[list[Path]]:
    """Yield the paths of `count` new PNG files in the current directory, named after a prompt and its seed.

    Until the block ends no other process gets these names: an empty hidden file beside each one reserves it. Raises
    OutputError if no file can be made there, and UsageError if no new name is left.
    """
    words, marks = file_words(text), list[Path]()
    check_writable(_numbered(Path(f"{words}-{seed}.png"), count)[-1])
    try:
        for suffix in ("", *(f"-{i}" for i in range(2, 10_000))):
            paths = _numbered(Path(f"{words}-{seed}{suffix}.png"), count)
            if all(_reserve(path, marks) for path in paths):
                break
            _free(marks)
        else:
            raise UsageError(f"thousands of pictures are named {words}-{seed}.", "Choose a name with --output.")
        yield paths
    finally:
        _free(marks)


def file_words(text: str) -> str:
    """Return a prompt as words that any system takes in a file's name; "picture" if it has no letter or digit.

    Letters of every script stay, except where the system's own encoding lacks them. A symbol becomes its Unicode name.
    """
    plain = unicodedata.normalize("NFC", _SELECTORS.sub("", text)).lower()
    words = "".join(_spelled(c) if unicodedata.category(c) == "So" else c if _stays(c) else "-" for c in plain)
    try:
        os.fsencode(words)
    except UnicodeEncodeError:
        words = re.sub(r"[^a-z0-9]", "-", words)
    words = re.sub("-+", "-", words).strip("-").encode()[:MOST].decode(errors="ignore").strip("-")
    return words if any(c.isalnum() for c in words) else "picture"


def _spelled(symbol: str) -> str:
    return f"-{re.sub('[^a-z0-9]', '-', unicodedata.name(symbol, '').removeprefix(_LETTER).lower())}-"


def _stays(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")


def _numbered(first: Path, count: int) -> list[Path]:
    if count == 1:
        return [first]
    return [first.with_name(f"{first.stem}-{i}{first.suffix}") for i in range(1, count + 1)]


def _reserve(path: Path, marks: list[Path]) -> bool:
    """Reserve a name, and put the file that does so into `marks`; return whether it was free."""
    mark = path.with_name(f".{path.name}.reserved")
    with writing(path):
        try:
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
    marks.append(mark)
    return not os.path.lexists(path)  # asked last: whoever had the name before has written its file by now


def _free(marks: list[Path]) -> None:
    while marks:
        with contextlib.suppress(OSError):
            marks.pop().unlink()
