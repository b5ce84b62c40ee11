"""Engines that travel with a bundle: in its folder `engines`, their records' hashes in its bundle.json."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EngineError
from . import engine_cache, engine_upkeep, manifest
from .bundle import Bundle
from .directory import NewDirectory
from .engine_cache import Entry
from .files import write_whole, writing

if TYPE_CHECKING:
    from .build import Made

FOLDER = "engines"


def put_into(bundle: Bundle, made: Sequence[Made]) -> None:
    """Copy engines into the bundle's folder `engines`, in place of others of the same components and target.

    Its bundle.json names them then. That changes the bundle's own hash: a journal of before does not go on with it.
    Raises OutputError.
    """
    listed = dict(bundle.manifest.engines)
    new_ones = {(each.component, each.entry.record.fingerprint.target) for each in made}
    for old in within(bundle):
        if (old.record.component, old.record.fingerprint.target) in new_ones:
            del listed[old.directory.name]
            engine_upkeep.remove(old.directory)
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
        write_whole(path, manifest.dump(content))


def within(bundle: Bundle) -> list[Entry]:
    """Return the engines that came with the bundle, no links, and whose records have the hashes that it names."""
    found = []
    place = bundle.directory / FOLDER
    if place.is_symlink():
        return []
    for entry in engine_cache.entries(place):
        parts = (entry.directory, entry.plan, entry.directory / engine_cache.RECORD)
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
        entry = engine_cache.read(directory)
        if _digest(directory) != digest:
            raise EngineError(
                f"the record of the engine {directory} was altered. Remove the directory, or run segue build with "
                "--into-bundle again."
            )
        entry.check(again=True)
        count += 1
    return count


def _digest(directory: Path) -> str:
    return hashlib.sha256((directory / engine_cache.RECORD).read_bytes()).hexdigest()
