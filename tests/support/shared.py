"""Make a costly directory once: for all workers of a run, and for later runs of the same sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

import segue

ROOT = Path(segue.__file__).parent
FOLDERS = ("engines", "export", "runtime", "training", "tests/support")  # their code makes bundles
MAKERS = ("diffusers", "onnx", "onnxruntime", "onnxscript", "torch", "transformers")


@cache
def sources() -> str:
    """Return a hash of all code that makes bundles, and of the versions of the libraries that it uses."""
    found = hashlib.sha256("".join(version(name) for name in MAKERS).encode())
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in (*paths, ROOT / "errors.py", ROOT / "tests/conftest.py"):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


def once(request: pytest.FixtureRequest, name: str, make: Callable[[Path], object]) -> Path:
    """Return the directory `name`, which `make` fills in the first worker that asks; the others wait for it.

    Pytest's cache keeps a copy, so that `pytest -m slow` after `pytest` makes nothing again.
    """
    root = request.getfixturevalue("tmp_path_factory").getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the run; each worker has a directory in it
    folder = root / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            kept = cached_folder(request.config, name)
            if kept is not None and kept.exists():
                shutil.copytree(kept, folder)
            else:
                make(folder)
                if kept is not None:
                    partial = Path(tempfile.mkdtemp(dir=kept.parent))
                    shutil.copytree(folder, partial, dirs_exist_ok=True)
                    try:
                        partial.rename(kept)
                    except OSError:  # another run of pytest was faster
                        shutil.rmtree(partial)
            done.touch()
    return folder


def cached_folder(config: pytest.Config, name: str) -> Path | None:
    """Return a folder in pytest's cache, after those of other sources are removed; None without the cache."""
    if not hasattr(config, "cache") or config.cache is None:
        return None
    folder = config.cache.mkdir("bundles") / sources()
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    return folder / name
