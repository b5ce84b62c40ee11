"""What an opened model offers for LoRA files, and that it serves one call at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import BusyError
from ..bundle.reader import Bundle
from .adapter import Adapters


class Playing:
    """A model that plays LoRA files; its class sets the attributes."""

    bundle: Bundle
    _adapters: Adapters
    _lock: threading.Lock

    @property
    def loras(self) -> tuple[dict[str, Any], ...]:
        """The LoRA files that are played: file name, sha256, factor and component of each."""
        return self._adapters.used

    def lora(
        self, file: str | os.PathLike[str] | None, factor: float = 1.0, component: str = "", *, add: bool = False
    ) -> None:
        """Play the LoRA `file` from the next request on, in place of others or with `add` beside them; None: play none.

        `component` names the denoiser that takes it (empty: the bundle's). The bundle needs inputs for it, from
        segue export --lora-rank. Raises the errors of `lora.adapter.Adapters.use`, and BusyError during a request.
        """
        with self._taken():
            self._adapters.use(None if file is None else Path(file), factor, component, add)

    @contextmanager
    def _taken(self) -> Iterator[None]:
        """Refuse other calls during the block."""
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                f"the model of {self.bundle.directory} is busy with another call. Wait until that call ends (close its "
                "iterator if it came from pictures or frames), or use a segue.ModelQueue."
            )
        try:
            yield
        finally:
            self._lock.release()
