"""Engines on disk. The name of an engine's directory is the hash of all that determines the engine.

An engine is executable code. Before a deserialiser reads it, its fingerprint must hash to its directory's name, and its
bytes to the hash in its record. This finds damage and mistakes. Trust is a separate check: Segue refuses the user's
cache if others may write to it, and ignores a bundle's engines unless the user asks for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...engines.tensorrt.build import Built
from ...errors import EngineError
from ..storage import typed_json, verified
from ..storage.directory import NewDirectory
from ..storage.files import write_whole, writing
from ..storage.lock import holding
from ..storage.paths import cache_directory

SCHEMA = 1
RECORD, PLAN, LOG = "engine.json", "engine.plan", "build.log"
MAX_RECORD = 2**20
KEY = re.compile(r"[0-9a-f]{64}")

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Fingerprint:
    """All that determines an engine. `graph` and `weights` are sha256 (of weights by file).

    `capabilities` are tenfold. `gpu` and `driver` are empty if the target does not tie an engine to them. `recipe` is a
    version number of Segue's own way to build.
    """

    graph: str
    weights: dict[str, str]
    precision: str
    target: str
    version: str
    capabilities: tuple[int, ...]
    profiles: tuple[dict[str, Shapes], ...]
    workspace: int | None
    streaming: bool
    system: str
    gpu: str
    driver: str
    recipe: int

    @property
    def key(self) -> str:
        """Return the sha256 of all of it, hexadecimal."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """engine.json: the sources of an engine, the sha256 and bytes of its plan, and facts about the build."""

    schema: int
    fingerprint: Fingerprint
    bundle: str
    component: str
    sha256: str
    bytes: int
    seconds: float
    layers: int
    fused: int  # attention layers that became one kernel
    decomposed: int  # attention layers that did not
    peak: int  # peak memory of the building process, bytes; 0: not known
    built: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Entry:
    """An engine in its directory."""

    directory: Path
    record: Record

    @property
    def plan(self) -> Path:
        """Return the file for the deserialiser."""
        return self.directory / PLAN

    def check(self, again: bool = False) -> None:
        """Raise EngineError unless the plan has the bytes of the record.

        The plan is hashed once and then remembered, as a bundle's weights are; `again` always hashes it.
        """
        try:
            status = os.lstat(self.plan)
            known = verified.key(status, self.record.sha256) in verified.load()
            if known and not again and status.st_size == self.record.bytes:
                return
            with self.plan.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EngineError(f"{self.plan} cannot be read: {error}.", "Run segue build again.") from None
        if found != self.record.sha256:
            raise EngineError(
                f"{self.plan} was altered: its sha256 is {found}, {RECORD} says {self.record.sha256}.",
                "Run segue build again to replace it.",
            )
        verified.remember([(status, found)])

    def touch(self) -> None:
        """Note that the engine was used now; eviction begins with the least recently used one."""
        with contextlib.suppress(OSError):
            os.utime(self.directory / RECORD)


def root() -> Path:
    """Return the directory of the user's engines; it may not exist."""
    return cache_directory() / "engines"


def entries(place: Path) -> list[Entry]:
    """Return the engines below `place`, the least recently used first; damaged ones are left out."""
    try:
        found = [directory for directory in place.iterdir() if KEY.fullmatch(directory.name)]
    except OSError:
        return []
    dated = []
    for directory in found:
        with contextlib.suppress(EngineError, OSError):
            dated.append(((directory / RECORD).stat().st_mtime_ns, directory.name, read(directory)))
    return [entry for _, _, entry in sorted(dated, key=lambda item: item[:2])]


def read(directory: Path) -> Entry:
    """Return the engine in `directory` without checking its plan; raises EngineError for a damaged record."""
    path = directory / RECORD
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECORD + 1)
        if len(data) > MAX_RECORD:
            raise ValueError(f"its record is above the limit of {MAX_RECORD} bytes")
        record: Record = typed_json.build(Record, typed_json.read(data), str(path))
        if record.schema != SCHEMA:
            raise ValueError(f"its record has schema {record.schema}, this Segue reads {SCHEMA}")
        if record.fingerprint.key != directory.name:
            raise ValueError(f"its record belongs to another engine, {record.fingerprint.key}")
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"the engine {directory} is damaged: {error}.", "Run segue build again.") from None
    return Entry(directory, record)


def get(fingerprint: Fingerprint) -> Entry | None:
    """Return the user's checked engine of that fingerprint; None if it is absent or damaged."""
    directory = root() / fingerprint.key
    try:
        entry = read(directory)
        entry.check()
    except EngineError:
        return None
    entry.touch()
    return entry


def check_root() -> None:
    """Raise EngineError if the cache of engines belongs to another user, or if others may write to it."""
    if os.name == "nt":
        return
    try:
        status = os.stat(root())
    except FileNotFoundError:
        return
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(
            f"{root()} belongs to another user, or others may write to it, so its engines are not trusted.",
            f"Run: chmod go-w '{root()}', or set XDG_CACHE_HOME to a directory of your own.",
        )


def obtain(
    fingerprint: Fingerprint,
    bundle: str,
    component: str,
    build: Callable[[Path], Built],
    built: str,
    waiting: Callable[[], None] = lambda: None,
    cancel: Callable[[], bool] | None = None,
) -> tuple[Entry, bool]:
    """Return the user's engine of that fingerprint, and whether it was built now. One process at a time builds it.

    `build` writes a new file. `waiting()` is called before waiting for another process. Raises Cancelled as soon as
    `cancel()` returns true while it waits, OutputError if the cache cannot be written, and the errors of `build`. An
    unfinished engine leaves nothing behind, except the log of a builder that failed; the error names that file.
    """
    place = root()
    with writing(place):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_root()
    with holding(place / f"{fingerprint.key}.lock", waiting, cancel):
        found = get(fingerprint)
        if found is not None:
            return found, False
        directory, log = place / fingerprint.key, place / f"failed-{fingerprint.key}.log"
        with NewDirectory(directory, replace=True) as new:
            with _log_kept(log):
                made = build(new.path / PLAN)
            with (new.path / PLAN).open("rb") as file:
                digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            record = Record(
                SCHEMA, fingerprint, bundle, component, digest, size, made.seconds, made.layers, made.fused,
                made.decomposed, made.peak, built,
            )  # fmt: skip
            (new.path / LOG).write_text("".join(f"{line}\n" for line in made.log), encoding="utf-8")
            (new.path / RECORD).write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n", encoding="utf-8")
            new.commit()
        with contextlib.suppress(OSError):  # the log of an earlier attempt
            log.unlink()
        return read(directory), True


@contextlib.contextmanager
def _log_kept(path: Path) -> Iterator[None]:
    """Write the log of an EngineError to `path` and name that file in the error; if that fails, keep the error."""
    try:
        yield
    except EngineError as error:
        if not error.log:
            raise
        try:
            write_whole(path, "".join(f"{line}\n" for line in error.log).encode(errors="replace"))
        except OSError:
            raise error from None
        raise EngineError(error.what, f"{error.advice} Read the builder's log: {path}".strip(), error.log) from error


def differences(found: Fingerprint, wanted: Fingerprint) -> Iterator[str]:
    """Yield the name of each field that differs and both values, such as "version 1.6.0 instead of 1.7.1"."""
    for field in dataclasses.fields(Fingerprint):
        theirs, ours = getattr(found, field.name), getattr(wanted, field.name)
        if theirs != ours:
            yield f"{field.name} {_short(theirs)} instead of {_short(ours)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Made:
    """The engine of a component, and whether this request built it (`fresh`)."""

    component: str
    entry: Entry
    fresh: bool
