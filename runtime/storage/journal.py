"""The finished arrays of a long job, on disk, so that a stopped job can be resumed.

A journal is a directory. `job.json` describes its job, each array is a `.npy` file, and `done.jsonl` has a line with
the name and sha256 of each array. A line is written after its file is on disk. A truncated last line is ignored, and an
array whose bytes have changed counts as not done.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UsageError
from .files import write_whole, writing
from .lock import locked

if TYPE_CHECKING:
    from filelock import FileLock

_LOCK = "lock"
_NAME = re.compile(r"[a-z0-9-]{1,64}")


class Journal:
    """Arrays by name that outlive the process. Open one with `open_journal`; until `close` nobody else can open it."""

    def __init__(self, folder: Path, done: dict[str, str], lock: FileLock) -> None:
        self.folder, self._done, self._lock = folder, done, lock

    def __contains__(self, name: str) -> bool:
        """Return whether `name` was put; `get` checks its bytes."""
        return name in self._done

    def put(self, name: str, array: np.ndarray) -> None:
        """Keep `array` as `name`; it is on disk when this returns. Raises OutputError if it cannot be written."""
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
        """Return the array of that name, or None if it was not put or its bytes have changed."""
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
        """Remove the file of an array; its line stays, and `get` returns None."""
        with contextlib.suppress(OSError):
            (self.folder / f"{name}.npy").unlink()

    def close(self) -> None:
        """Let others open the journal. Closing twice is allowed."""
        self._lock.release()


def open_journal(folder: Path, job: Mapping[str, Any], resume: bool) -> Journal:
    """Return the journal of `job` (JSON types) in `folder`: the existing one if `resume`, else a new one.

    Raises UsageError if `resume` finds no journal or that of another job, if another process has it open, and if the
    directory holds other files; OutputError if it cannot be written.
    """
    if resume:
        check_job(folder, job)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check_own(folder)
    with writing(folder):
        lock = locked(
            folder / _LOCK,
            f"{folder} is in use: another process makes this video. Wait for it, or name another output.",
        )
    try:
        done = _done(folder) if resume else {}
        lines = [json.dumps({"name": name, "sha256": digest}) + "\n" for name, digest in done.items()]
        with writing(folder):
            if not resume:
                for path in folder.iterdir():
                    if path.name != _LOCK:
                        path.unlink()
                write_whole(folder / "job.json", json.dumps(dict(job), indent=1).encode())
            write_whole(folder / "done.jsonl", "".join(lines).encode())  # without a truncated last line
    except BaseException:
        lock.release()
        raise
    return Journal(folder, done, lock)


def finished(folder: Path) -> tuple[str, ...]:
    """Return the names of the arrays that the journal in `folder` holds; empty if there is no journal."""
    return tuple(_done(folder))


def _check_own(folder: Path) -> None:
    """Raise UsageError if a directory holds files that no journal has, so that nothing else is ever removed."""
    own = ("job.json", "done.jsonl", _LOCK)
    others = [
        p.name for p in folder.iterdir() if p.name not in own and p.suffix != ".npy" and not p.name.startswith(".")
    ]
    if others:
        raise UsageError(
            f"{folder} holds {others[0]!r}, which no journal has.", "Move it away, or name another directory."
        )


def kept_job(folder: Path) -> dict[str, Any]:
    """Return the job of the journal in `folder`; raises UsageError if there is no journal."""
    try:
        found = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{folder} holds no journal to resume.", "Start from the beginning (Python: resume=False).")
    return found


def check_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Raise UsageError unless `folder` holds the journal of `job`."""
    wanted, found = json.loads(json.dumps(job)), kept_job(folder)
    differing = [key for key in sorted(wanted.keys() | found.keys()) if found.get(key) != wanted.get(key)]
    if differing:
        key = differing[0]
        raise UsageError(
            f"{folder} is the journal of another job: its {key} is {str(found.get(key))[:80]!r}, yours is "
            f"{str(wanted.get(key))[:80]!r}.",
            "Ask for the same video as before, or start again (segue animate: --anew; Python: resume=False).",
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
