"""Fixtures of the runtime's tests: a private cache, and a small real bundle that takes no export."""

from __future__ import annotations

import hashlib
import json

import pytest

from segue.runtime.bundle import bundle_json
from segue.runtime.bundle import manifest as m
from support.bundles import with_parent, write_tiny_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache directory, private to each test."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory / "segue"


@pytest.fixture(params=["float32"])
def tiny_bundle(tmp_path, request):
    """Path of a fresh tiny bundle of family sd3 in float32; parametrise indirectly for float16."""
    return write_tiny_bundle(tmp_path / "tiny", request.param)


@pytest.fixture
def edit(tiny_bundle):
    """Function that changes the tiny bundle as a hostile or careless exporter would.

    `files` maps names to new bytes, hashed into the manifest; `change` then alters bundle.json as a table.
    """

    def apply(change=lambda table: None, files=None):
        table = json.loads((tiny_bundle / m.FILE_NAME).read_bytes())
        for name, data in (files or {}).items():
            with_parent(tiny_bundle / name).write_bytes(data)
            table["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "origin": False}
        change(table)
        (tiny_bundle / m.FILE_NAME).write_text(json.dumps(table))
        return tiny_bundle

    return apply


@pytest.fixture
def content(tiny_bundle):
    """The manifest of the tiny bundle."""
    return bundle_json.parse((tiny_bundle / m.FILE_NAME).read_bytes(), m.FILE_NAME)
