"""Verify the user's engines, keep them below a limit of bytes, and remove them and the rest of the cache."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ...errors import EngineError, OutputError, UsageError
from ..storage import verified
from ..storage.directory import remove_dead
from ..storage.files import writing
from ..storage.paths import cache_directory, packages_directory
from ..units import bytes_of
from .store import KEY, entries, read, root

LIMIT = 64 * 2**30  # bytes of the engines to keep
VARIABLE = "SEGUE_ENGINE_CACHE"


def limit() -> int:
    """Return how many bytes of engines to keep: the value of SEGUE_ENGINE_CACHE, such as "100GiB", or else LIMIT.

    Raises UsageError if that value is not an amount.
    """
    try:
        return bytes_of(os.environ.get(VARIABLE) or LIMIT)
    except UsageError as error:
        raise UsageError(f"the environment variable {VARIABLE} cannot be read: {error.what}", error.advice) from None


@dataclass(frozen=True)
class Unreadable:
    """A directory of the cache whose record cannot be read or has another schema: its size, and the reason."""

    directory: Path
    bytes: int
    why: str


def unreadable(place: Path) -> list[Unreadable]:
    """Return the engines below `place` that `entries` leaves out; they take up space, too."""
    found = []
    for directory in sorted(place.glob("*")) if place.is_dir() else []:
        if KEY.fullmatch(directory.name) and directory.is_dir():
            try:
                read(directory)
            except EngineError as error:
                found.append(Unreadable(directory, bytes_below(directory), str(error)))
    return found


def bytes_below(place: Path) -> int:
    """Return the bytes of a file, or of all files below a directory; 0 if there is none."""
    size = 0
    for file in (place, *place.rglob("*")):
        with contextlib.suppress(OSError):
            status = file.lstat()
            size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return size


def verify(place: Path) -> tuple[int, list[str]]:
    """Hash every engine below `place`; return how many are whole, and a message for each of the others."""
    whole, wrong = 0, []
    for directory in sorted(place.glob("*")) if place.is_dir() else []:
        if KEY.fullmatch(directory.name):
            try:
                read(directory).check(again=True)
                whole += 1
            except EngineError as error:
                wrong.append(str(error))
    return whole, wrong


def evict(most: int, keep: Collection[str] = ()) -> list[Path]:
    """Remove engines until the rest has at most `most` bytes; return the directories removed.

    Unreadable engines go first, then the least recently used ones. Engines whose key is in `keep` stay, whatever their
    size. Raises OutputError.
    """
    place = root()
    found = [(each.directory, each.bytes) for each in unreadable(place)]
    found += [(entry.directory, entry.record.bytes) for entry in entries(place)]
    total, removed = sum(size for _, size in found), []
    for directory, size in found:
        if total <= most:
            break
        if directory.name not in keep:
            remove(directory)
            total -= size
            removed.append(directory)
    return removed


def clear() -> int:
    """Remove every engine of the user: whole, damaged, or begun by a process that died. Return how many directories.

    The logs of failed builds go as well. Raises OutputError.
    """
    place, count = root(), 0
    if not place.is_dir():
        return 0
    for log in (*place.glob("failed-*.log"), *place.glob(".failed-*.log.*")):
        with writing(log):
            log.unlink(missing_ok=True)
    for directory in list(place.iterdir()):
        if KEY.fullmatch(directory.name):
            remove(directory)
            count += 1
    return count + remove_dead(place, "*")


@dataclass(frozen=True)
class Held:
    """What the cache holds besides engines: a file or directory, how many things it holds, and its bytes.

    `mine`: it lies in Segue's own cache directory, so `clear_rest` removes it.
    """

    what: str
    path: Path
    count: int
    bytes: int
    mine: bool


def rest() -> list[Held]:
    """Return what the cache holds besides engines: fetched data, digests of verified files, reports of comparisons."""
    place, data = cache_directory(), packages_directory()
    known = (
        ("training data and networks", data, len(list(data.glob("[!.]*"))) if data.is_dir() else 0),
        ("digests of verified files", place / "verified.json", len(verified.load())),
        ("reports of compared targets", place / "parity", len(list(place.glob("parity/*.json")))),
    )
    return [
        Held(what, path, count, size, path.is_relative_to(place))
        for what, path, count in known
        if (size := bytes_below(path))
    ]


def clear_rest() -> int:
    """Remove what `rest` returns and is Segue's own; return the bytes. Raises OutputError."""
    freed = 0
    for held in rest():
        if held.mine:
            with writing(held.path):
                shutil.rmtree(held.path) if held.path.is_dir() else held.path.unlink(missing_ok=True)
            freed += held.bytes
    return freed


def remove(directory: Path) -> None:
    """Remove an engine: hide it from readers in one step, then delete it. Raises OutputError."""
    aside = directory.with_name(f".{directory.name}.old-removed")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(directory, aside)
        shutil.rmtree(aside)
    except FileNotFoundError:
        return  # another process removed it
    except OSError as error:
        raise OutputError(f"the engine {directory} cannot be removed: {error}.", "Remove it by hand.") from None
