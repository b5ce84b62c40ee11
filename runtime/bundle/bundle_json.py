"""Convert `bundle.json` to a manifest and back, and check every field, number and path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import PurePosixPath

from ...errors import BundleError
from ..storage import typed_json
from . import checks
from .manifest import SCHEMA, Manifest


def dump(manifest: Manifest) -> bytes:
    """Return `manifest` as the bytes of bundle.json."""
    return (json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False) + "\n").encode()


def parse(data: bytes, where: str) -> Manifest:
    """Return the manifest that `data` holds; `where` names it in messages.

    Raises BundleError for invalid JSON, a newer schema, unknown, missing or ill-typed fields and unsafe paths.
    """
    try:
        table = typed_json.read(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}).", "Export or fetch the bundle again.") from None
    schema = table.get("schema") if isinstance(table, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise BundleError(
            f"{where} has no schema number, so it is not a Segue bundle.", "Name a directory made by segue export."
        )
    if schema < 1:
        raise BundleError(f"{where} has schema {schema}, which never existed.", "Export or fetch the bundle again.")
    if schema > SCHEMA:
        raise BundleError(f"{where} has schema {schema}; this Segue reads up to {SCHEMA}.", "Use a newer Segue.")
    try:
        manifest: Manifest = typed_json.build(Manifest, table, where)
    except ValueError as error:
        raise BundleError(f"{error}.", "Export the bundle again.") from None
    checks.check_numbers(manifest, where)
    for path in manifest.files:
        check_path(path, where)
    named = [t.file for t in manifest.tokenizers.values()]
    for component in manifest.components.values():
        named += [*component.graphs, *component.weights]
    for path in named:
        if path not in manifest.files:
            raise BundleError(f"{where} uses {path!r} but lists no hash for it.", "Export the bundle again.")
    return manifest


def check_path(path: str, where: str) -> None:
    """Raise BundleError unless `path` is a plain relative POSIX path that stays inside its directory."""
    parts = PurePosixPath(path).parts
    plain = parts and path == "/".join(parts) and path.isprintable() and not any(mark in path for mark in "\\:")
    if not plain or path.startswith("/") or ".." in parts:
        raise BundleError(
            f"{where} names the path {path!r}, which leaves the bundle's directory or is not plain.",
            "Do not use this bundle; export it again from its checkpoint.",
        )
