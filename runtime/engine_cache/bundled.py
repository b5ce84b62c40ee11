"""Engines in a bundle: the folder `engines` holds them, and bundle.json holds the hashes of their records."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import BundleError, EngineError
from ..bundle import bundle_json, manifest
from ..bundle.reader import Bundle, read_manifest
from ..storage.directory import NewDirectory
from ..storage.files import write_whole, writing
from ..storage.lock import holding
from . import store, upkeep
from .store import Entry, Made, Record

FOLDER, LOCK = "engines", ".engines.lock"


def put_into(bundle: Bundle, made: Sequence[Made], waiting: Callable[[], None] = lambda: None) -> None:
    """Copy engines into the bundle's folder `engines` and name them in its bundle.json.

    A new engine replaces the bundle's older engine for the same component, GPU, system and target. The bundle's own
    hash changes: an older journal cannot be resumed with it. One process at a time does this; `waiting()` is
    called before waiting for another one. Raises OutputError, and BundleError if the bundle was changed since it was
    opened.
    """
    with holding(bundle.directory / LOCK, waiting):
        _put_into(_as_it_is_now(bundle), made)


def _as_it_is_now(bundle: Bundle) -> Bundle:
    """Return the bundle with the engines that other processes added since it was opened."""
    now = read_manifest(bundle.directory)
    if dataclasses.replace(now, engines={}) != dataclasses.replace(bundle.manifest, engines={}):
        raise BundleError(
            f"the bundle {bundle.directory} was changed since it was opened.",
            "Run segue build again; it keeps the engines that still fit.",
        )
    return dataclasses.replace(bundle, manifest=now)


def _put_into(bundle: Bundle, made: Sequence[Made]) -> None:
    listed = dict(bundle.manifest.engines)
    for old in within(bundle):
        if any(_replaces(each.entry.record, old.record) for each in made):
            del listed[old.directory.name]
            upkeep.remove(old.directory)
    for each in made:
        each.entry.check(again=True)
        target = bundle.directory / FOLDER / each.entry.directory.name
        with NewDirectory(target, replace=True) as new:
            for file in each.entry.directory.iterdir():
                shutil.copyfile(file, new.path / file.name)
            new.commit()
        listed[target.name] = _digest(target)
    content = dataclasses.replace(bundle.manifest, engines=dict(sorted(listed.items())))
    path = bundle.directory / manifest.FILE_NAME
    with writing(path):
        write_whole(path, bundle_json.dump(content))


def _replaces(new: Record, old: Record) -> bool:
    """Return whether `new` runs on every GPU and system that runs `old`. Version and driver may differ."""
    a, b = new.fingerprint, old.fingerprint
    same = (new.component, a.target, a.system, a.gpu) == (old.component, b.target, b.system, b.gpu)
    return same and set(b.capabilities) <= set(a.capabilities)


def within(bundle: Bundle) -> list[Entry]:
    """Return the bundle's engines whose records have the hashes in its bundle.json; links are left out."""
    found = []
    place = bundle.directory / FOLDER
    if place.is_symlink():
        return []
    for entry in store.entries(place):
        parts = (entry.directory, entry.plan, entry.directory / store.RECORD)
        if any(part.is_symlink() for part in parts):
            continue
        if bundle.manifest.engines.get(entry.directory.name) == _digest(entry.directory):
            found.append(entry)
    return found


def verify_engines(bundle: Bundle) -> int:
    """Hash the engines that bundle.json names and that are present; return how many.

    Raises EngineError for one that was altered.
    """
    count = 0
    for key, digest in bundle.manifest.engines.items():
        directory = bundle.directory / FOLDER / key
        if not directory.exists():
            continue  # a user may remove it
        entry = store.read(directory)
        if _digest(directory) != digest:
            raise EngineError(
                f"the record of the engine {directory} was altered.",
                "Remove the directory, or run segue build with --into-bundle again.",
            )
        entry.check(again=True)
        count += 1
    return count


def _digest(directory: Path) -> str:
    return hashlib.sha256((directory / store.RECORD).read_bytes()).hexdigest()
