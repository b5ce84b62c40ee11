"""Engines that travel with a bundle: in its folder `engines`, their records' hashes in its bundle.json."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BundleError, EngineError
from ..bundle import bundle_json, manifest
from ..bundle.reader import Bundle, read_manifest
from ..storage.directory import NewDirectory
from ..storage.files import holding, write_whole, writing
from . import store, upkeep
from .store import Entry, Record

if TYPE_CHECKING:
    from .store import Made

FOLDER, LOCK = "engines", ".engines.lock"


def put_into(bundle: Bundle, made: Sequence[Made], waiting: Callable[[], None] = lambda: None) -> None:
    """Copy engines into the bundle's folder `engines`, in place of others of the same components for the same GPUs.

    Its bundle.json names them then. That changes the bundle's own hash: a journal of before does not go on with it.
    One process at a time does so; `waiting()` is called before another one is waited for. Raises OutputError, and
    BundleError where the bundle became another one since it was opened.
    """
    with holding(bundle.directory / LOCK, waiting):
        _put_into(_as_it_is_now(bundle), made)


def _as_it_is_now(bundle: Bundle) -> Bundle:
    """Return the bundle with the engines that others put into it since it was opened."""
    now = read_manifest(bundle.directory)
    if dataclasses.replace(now, engines={}) != dataclasses.replace(bundle.manifest, engines={}):
        raise BundleError(
            f"the bundle {bundle.directory} was changed since it was opened. Run segue build again: what was built "
            "is kept, where it still fits."
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
    """Return whether no GPU and no system that can run `old` is without `new`; a newer version or driver replaces."""
    a, b = new.fingerprint, old.fingerprint
    same = (new.component, a.target, a.system, a.gpu) == (old.component, b.target, b.system, b.gpu)
    return same and set(b.capabilities) <= set(a.capabilities)


def within(bundle: Bundle) -> list[Entry]:
    """Return the engines that came with the bundle, no links, and whose records have the hashes that it names."""
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
    """Hash the engines that the bundle names and has; return how many. Raises EngineError for one that was altered."""
    count = 0
    for key, digest in bundle.manifest.engines.items():
        directory = bundle.directory / FOLDER / key
        if not directory.exists():
            continue  # they may be removed
        entry = store.read(directory)
        if _digest(directory) != digest:
            raise EngineError(
                f"the record of the engine {directory} was altered. Remove the directory, or run segue build with "
                "--into-bundle again."
            )
        entry.check(again=True)
        count += 1
    return count


def _digest(directory: Path) -> str:
    return hashlib.sha256((directory / store.RECORD).read_bytes()).hexdigest()
