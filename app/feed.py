"""What happens to one job, told to any number of readers: those that come later are told what they missed."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

KEPT = 256  # events; a reader that comes later misses what is older


@dataclass(frozen=True)
class Told:
    """One event: its number in the job from 0, its name and its values (JSON types)."""

    number: int
    name: str
    values: dict[str, Any]


class Feed:
    """Events of one job. Any thread may `put`; readers are coroutines."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(4)  # tells its events' identifiers from those of another run of the job
        self._lock = threading.Lock()
        self._kept: deque[Told] = deque(maxlen=KEPT)
        self._count, self._ended = 0, False
        self._readers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def put(self, name: str, last: bool = False, **values: Any) -> None:
        """Tell an event; of previews only the newest is kept. With `last` readers end after it."""
        with self._lock:
            if name == "preview":
                self._kept = deque((told for told in self._kept if told.name != "preview"), maxlen=KEPT)
            self._kept.append(Told(self._count, name, values))
            self._count += 1
            self._ended = self._ended or last
            readers = list(self._readers)
        for loop, changed in readers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

    def after(self, identifier: str | None) -> int:
        """Return the number of the event that a reader saw last, by its identifier; -1 for that of another feed."""
        mark, _, number = (identifier or "").partition("-")
        return int(number) if mark == self.mark and number.isdecimal() else -1

    async def read(self, after: int = -1) -> AsyncIterator[Told]:
        """Yield the events whose number is above `after`, until the last one."""
        changed = asyncio.Event()
        reader = (asyncio.get_running_loop(), changed)
        with self._lock:
            self._readers.add(reader)
        try:
            while True:
                changed.clear()
                with self._lock:
                    news, ended = [told for told in self._kept if told.number > after], self._ended
                for told in news:
                    yield told
                    after = told.number
                if ended:
                    return
                await changed.wait()
        finally:
            with self._lock:
                self._readers.discard(reader)
