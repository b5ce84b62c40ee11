"""What a long job has finished, on disk, so that it goes on after a crash where it was.

A journal is a directory: `job.json` says which job it belongs to, each array that was put is a `.npy` file, and
`done.jsonl` has a line for each, with its sha256, written after the file is on disk. A last line that was cut off is no
line, and an array whose bytes have changed counts as not done.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .files import write_whole, writing

_NAME = re.compile(r"[a-z0-9-]{1,64}")


class Journal:
    """Arrays by name that outlive the process; `open_journal` makes one."""

    def __init__(self, folder: Path, done: dict[str, str]) -> None:
        self.folder, self._done = folder, done

    def __contains__(self, name: str) -> bool:
        """Return whether `name` was put; its bytes are checked when it is asked for."""
        return name in self._done

    def put(self, name: str, array: np.ndarray) -> None:
        """Keep `array` as `name`; on disk when this returns. Raises OutputError where it cannot be written."""
        assert _NAME.fullmatch(name), name
        data = io.BytesIO()
        np.save(data, array, allow_pickle=False)
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        with writing(self.folder):
            write_whole(self.folder / f"{name}.npy", data.getvalue())
            with (self.folder / "done.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "sha256": digest}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._done[name] = digest

    def get(self, name: str) -> np.ndarray | None:
        """Return the array of that name, or None where it was not put or its bytes have changed since."""
        if name not in self._done:
            return None
        try:
            data = (self.folder / f"{name}.npy").read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != self._done[name]:
            del self._done[name]
            return None
        return np.load(io.BytesIO(data), allow_pickle=False)

    def forget(self, name: str) -> None:
        """Remove the file of an array that is not needed again; its line stays, and `get` gives None."""
        with contextlib.suppress(OSError):
            (self.folder / f"{name}.npy").unlink()

    def remove(self) -> None:
        """Remove the journal: its job is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def open_journal(folder: Path, job: Mapping[str, Any], resume: bool) -> Journal:
    """Return the journal of `job` (JSON types) in `folder`, with what is done already if `resume`, else a new one.

    Raises UsageError where `resume` finds none or one of another job, and OutputError where it cannot be written.
    """
    wanted = json.loads(json.dumps(job))
    if resume:
        _check_job(folder, wanted)
        done = _done(folder)
        lines = [json.dumps({"name": name, "sha256": digest}) + "\n" for name, digest in done.items()]
        with writing(folder):
            write_whole(folder / "done.jsonl", "".join(lines).encode())  # else the next line would follow a cut one
        return Journal(folder, done)
    with writing(folder):
        if (folder / "job.json").exists() or not folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_whole(folder / "job.json", json.dumps(wanted, indent=1).encode())
    return Journal(folder, {})


def _check_job(folder: Path, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{folder} holds no journal to go on from. Run the command without --resume.") from None
    keys = sorted(wanted.keys() | (found.keys() if isinstance(found, dict) else set()))
    differing = [key for key in keys if not isinstance(found, dict) or found.get(key) != wanted.get(key)]
    if differing:
        key = differing[0]
        had = found.get(key) if isinstance(found, dict) else found
        raise UsageError(
            f"{folder} is the journal of another job: its {key} is {str(had)[:80]!r}, yours is "
            f"{str(wanted.get(key))[:80]!r}. Ask for what it was begun with, or run without --resume to start again."
        )


def _done(folder: Path) -> dict[str, str]:
    done: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (folder / "done.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                name, digest = entry["name"], entry["sha256"]
            except (ValueError, TypeError, KeyError):
                continue
            if isinstance(name, str) and _NAME.fullmatch(name) and isinstance(digest, str):
                done[name] = digest
    return done
