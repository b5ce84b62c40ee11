"""Worker processes that end when their parent process ends, for whatever reason."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


def one_worker(begin: Callable[..., None], arguments: tuple[Any, ...]) -> ProcessPoolExecutor:
    """Return an executor with one process, which first calls `begin(*arguments)`.

    The process is spawned, because threads of ONNX Runtime do not survive a fork. Only the parent handles Ctrl-C.
    """
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _attend, (begin, arguments))
    with _ignoring_interrupts():  # the process inherits this while it imports; `submit` starts it
        executor.submit(int)
    return executor


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _attend(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:  # a worker holds its own end of the pipe, and would wait forever
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    begin(*arguments)
