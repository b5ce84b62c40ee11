"""The server's jobs on disk, in SQLite. An accepted job survives the process."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...engines.base import Closing
from ...errors import OutputError

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
STATES = (WAITING, RUNNING, DONE, FAILED, CANCELLED)
_SCHEMA = 2  # 1 had no warnings


@dataclass(frozen=True)
class Job:
    """One accepted request. Times are seconds since 1970; `files` are names in the job's directory."""

    id: str
    kind: str  # "picture" or "video"
    bundle: str
    request: dict[str, Any]  # arguments of Request or AnimationRequest, without arrays
    state: str
    created: float
    started: float | None = None
    finished: float | None = None
    files: list[str] = field(default_factory=list)
    error: dict[str, str] | None = None  # "kind" and "message"
    attempts: int = 0  # how often it was started
    cancelling: bool = False  # a caller cancelled it while it ran
    warnings: list[str] = field(default_factory=list)  # what is probably not as intended, one line each

    @property
    def over(self) -> bool:
        """Whether the job is done, failed or cancelled."""
        return self.state in (DONE, FAILED, CANCELLED)


class Store(Closing):
    """Jobs by identifier. Every change is on disk when its call returns. Any thread may call.

    Calls raise OutputError if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._changing = path, threading.Lock(), threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # A commit in the log survives the death of the process without a flush to the disk itself.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA secure_delete = ON")  # the prompt of a removed job does not stay in the file
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA:
                raise OutputError(
                    f"{path} holds jobs in schema {version}; this version of Segue writes {_SCHEMA}. Choose another "
                    "directory with --data, or use the version that wrote it."
                )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, "
                "state TEXT NOT NULL, job TEXT NOT NULL)"
            )
            self._db.execute("CREATE INDEX IF NOT EXISTS by_state ON jobs (state)")
            self._db.execute(f"PRAGMA user_version = {_SCHEMA}")
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"{path} cannot be used: {error}. Choose another directory with --data.") from None

    def add(self, job: Job) -> None:
        """Add a new job after the others."""
        self._run("INSERT INTO jobs (id, state, job) VALUES (?, ?, ?)", job.id, job.state, _packed(job))

    def change(self, identifier: str, **values: Any) -> Job:
        """Change fields of a job and return the changed job."""
        with self._changing:
            ((text,),) = self._run("SELECT job FROM jobs WHERE id = ?", identifier)
            job = dataclasses.replace(_unpacked(text), **values)
            self._run("UPDATE jobs SET state = ?, job = ? WHERE id = ?", job.state, _packed(job), identifier)
            return job

    def remove(self, identifier: str) -> None:
        """Remove a job, also from the log that SQLite keeps beside its file."""
        self._run("DELETE FROM jobs WHERE id = ?", identifier)
        self._run("PRAGMA wal_checkpoint(TRUNCATE)")

    def get(self, identifier: str) -> Job | None:
        """Return the job, or None if there is no such job."""
        rows = self._run("SELECT job FROM jobs WHERE id = ?", identifier)
        return _unpacked(rows[0][0]) if rows else None

    def newest(self, limit: int, state: str | None = None) -> list[Job]:
        """Return at most `limit` jobs, newest first, in one state or in all states."""
        if state is None:
            rows = self._run("SELECT job FROM jobs ORDER BY number DESC LIMIT ?", limit)
        else:
            rows = self._run("SELECT job FROM jobs WHERE state = ? ORDER BY number DESC LIMIT ?", state, limit)
        return [_unpacked(row[0]) for row in rows]

    def unfinished(self) -> list[Job]:
        """Return the jobs that wait or were running, in the order they were accepted."""
        rows = self._run("SELECT job FROM jobs WHERE state IN (?, ?) ORDER BY number", WAITING, RUNNING)
        return [_unpacked(row[0]) for row in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OutputError(f"{self._path} cannot be written: {error}. Make room on its disk.") from None


def _packed(job: Job) -> str:
    return json.dumps(dataclasses.asdict(job), ensure_ascii=False)


def _unpacked(text: str) -> Job:
    return Job(**json.loads(text))
