"""Ctrl-C that is answered at once, also while the main thread is in a network call.

Python runs a signal's handler in the main thread, between two instructions. A network call is one instruction, and it
may take many seconds. The interpreter also writes each signal into a socket at once, and a thread reads that.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ...errors import Cancelled

if TYPE_CHECKING:
    from ...runtime.queue import CancelToken

GRACE = 0.5  # seconds that the main thread has to end after a second Ctrl-C


@contextmanager
def stopping(tell: Callable[[], None], end: Callable[[], None]) -> Iterator[CancelToken]:
    """Yield a token that Ctrl-C cancels in the block; `tell` answers at once, from another thread.

    A second Ctrl-C raises KeyboardInterrupt. If the main thread is in a network call and cannot, `end` runs and the
    process ends with exit code 130. Ctrl-C stays as it is outside the main thread, and if the parent process or the
    program has changed it.
    """
    from ...runtime.queue import CancelToken

    stop = CancelToken()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop
        return
    over, presses = threading.Event(), 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        stop.cancel()
        if presses > 1:
            raise KeyboardInterrupt

    def watch() -> None:
        seen = 0
        while data := ours.recv(64):
            for _ in range(data.count(signal.SIGINT)):
                seen += 1
                if seen == 1:
                    stop.cancel()
                    tell()
                elif seen == 2 and not over.wait(GRACE):
                    end()
                    os._exit(Cancelled.exit_code)

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # the interpreter demands it
    watcher = threading.Thread(target=watch, name="segue-ctrl-c", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        over.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(before)
        theirs.close()  # the watcher reads the end, and stops
        watcher.join()
        ours.close()
