"""The events of one job, for any number of readers. A late reader gets the events that it missed."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

KEPT = 256  # events; a late reader misses older ones


@dataclass(frozen=True)
class JobEvent:
    """One event: its number in the job (from 0), its name and its values (JSON types)."""

    number: int
    name: str
    values: dict[str, Any]


class Feed:
    """Events of one job. Any thread may call `put`; readers are coroutines."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(4)  # differs between runs of a job, and so do its events' ids
        self._lock = threading.Lock()
        self._kept: deque[JobEvent] = deque(maxlen=KEPT)
        self._count, self._ended = 0, False
        self._readers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def put(self, name: str, last: bool = False, **values: Any) -> None:
        """Add an event. Only the newest preview is kept. Readers stop after a `last` event."""
        with self._lock:
            if name == "preview":
                self._kept = deque((event for event in self._kept if event.name != "preview"), maxlen=KEPT)
            self._kept.append(JobEvent(self._count, name, values))
            self._count += 1
            self._ended = self._ended or last
            readers = list(self._readers)
        for loop, changed in readers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

    def after(self, identifier: str | None) -> int:
        """Return the number of the event with this identifier; -1 if another feed made the identifier."""
        mark, _, number = (identifier or "").partition("-")
        return int(number) if mark == self.mark and number.isdecimal() else -1

    async def read(self, after: int = -1) -> AsyncIterator[JobEvent]:
        """Yield the events whose number is above `after`, until the last one."""
        changed = asyncio.Event()
        reader = (asyncio.get_running_loop(), changed)
        with self._lock:
            self._readers.add(reader)
        try:
            while True:
                changed.clear()
                with self._lock:
                    news, ended = [event for event in self._kept if event.number > after], self._ended
                for event in news:
                    yield event
                    after = event.number
                if ended:
                    return
                await changed.wait()
        finally:
            with self._lock:
                self._readers.discard(reader)
