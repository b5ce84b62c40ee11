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
from typing import IO, Any

import numpy as np

from ...errors import UsageError
from .files import write_whole, writing

_LOCK = "lock"
_NAME = re.compile(r"[a-z0-9-]{1,64}")


class Journal:
    """Arrays by name that outlive the process; `open_journal` makes one, which nobody else can open until `close`."""

    def __init__(self, folder: Path, done: dict[str, str], lock: IO[bytes]) -> None:
        self.folder, self._done, self._lock = folder, done, lock

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

    def close(self) -> None:
        """Let others open the journal. Closing twice is allowed."""
        self._lock.close()

    def remove(self) -> None:
        """Remove the journal: its job is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


def open_journal(folder: Path, job: Mapping[str, Any], resume: bool) -> Journal:
    """Return the journal of `job` (JSON types) in `folder`, with what is done already if `resume`, else a new one.

    Raises UsageError where `resume` finds none or one of another job, where another process has it open, and where the
    directory holds other things; OutputError where it cannot be written.
    """
    if resume:
        check_job(folder, job)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check_own(folder)
    lock = _locked(folder)
    try:
        done = _done(folder) if resume else {}
        lines = [json.dumps({"name": name, "sha256": digest}) + "\n" for name, digest in done.items()]
        with writing(folder):
            if not resume:
                for path in folder.iterdir():
                    if path.name != _LOCK:
                        path.unlink()
                write_whole(folder / "job.json", json.dumps(dict(job), indent=1).encode())
            write_whole(folder / "done.jsonl", "".join(lines).encode())  # else the next line would follow a cut one
    except BaseException:
        lock.close()
        raise
    return Journal(folder, done, lock)


def finished(folder: Path) -> int:
    """Return how many arrays the journal in `folder` holds; 0 where there is none."""
    return len(_done(folder))


def _check_own(folder: Path) -> None:
    """Raise UsageError where a directory holds what no journal does: nothing of others is ever removed."""
    own = ("job.json", "done.jsonl", _LOCK)
    others = [
        p.name for p in folder.iterdir() if p.name not in own and p.suffix != ".npy" and not p.name.startswith(".")
    ]
    if others:
        raise UsageError(
            f"{folder} holds {others[0]!r}, which is of no journal. Move that away, or name another directory."
        )


def _locked(folder: Path) -> IO[bytes]:
    """Return the journal's lock file, locked for this process until it is closed (not on Windows)."""
    with writing(folder):
        lock = (folder / _LOCK).open("ab")
    try:
        import fcntl
    except ImportError:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(
            f"{folder} is in use: the same video is being made already. Wait for that, or name another output."
        ) from None
    return lock


def kept_job(folder: Path) -> dict[str, Any]:
    """Return the job whose journal `folder` is; raises UsageError where it is none."""
    try:
        found = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{folder} holds no journal to go on from. Run the command without --resume.")
    return found


def check_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Raise UsageError unless `folder` holds the journal of `job`."""
    wanted, found = json.loads(json.dumps(job)), kept_job(folder)
    differing = [key for key in sorted(wanted.keys() | found.keys()) if found.get(key) != wanted.get(key)]
    if differing:
        key = differing[0]
        raise UsageError(
            f"{folder} is the journal of another job: its {key} is {str(found.get(key))[:80]!r}, yours is "
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
