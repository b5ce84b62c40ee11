"""What the server writes about requests and jobs: to standard error with --verbose, and to an access log."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

_FILE = "logging.handlers.WatchedFileHandler" if os.name == "posix" else "logging.FileHandler"  # allows rotation


class Lines(logging.Formatter):
    """One line a message. The traceback of an error follows only if `verbose`."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self.verbose = verbose

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        text, error = record.getMessage().strip(), record.exc_info and record.exc_info[1]
        if error and self.verbose:
            text += "\n" + self.formatException((type(error), error, error.__traceback__))
        elif error:
            text = f"a request failed: {type(error).__name__}: {error}. Start the server with --verbose to see where."
        return f"{self.formatTime(record, '%H:%M:%S')} {text}"


class Requests(logging.Formatter):
    """Requests in the Common Log Format, without the query, which may hold what somebody types."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record of uvicorn's access log."""
        client, method, path, version, status = record.args  # type: ignore[misc]
        moment = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(record.created))
        host, _, _ = str(client).rpartition(":")
        plain = str(path).partition("?")[0]
        return f'{host or "-"} - - [{moment}] "{method} {plain} HTTP/{version}" {status} -'


def log_config(verbose: bool, access_log: Path | None) -> dict[str, Any]:
    """Return the configuration of `logging` for the server's process.

    `verbose`: write requests, jobs and tracebacks to standard error. `access_log`: append each request to this file.
    """
    handlers: dict[str, Any] = {
        "terminal": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"},
        "requests": {"class": "logging.StreamHandler", "formatter": "requests", "stream": "ext://sys.stderr"},
    }
    requests = ["requests"] if verbose else []
    if access_log is not None:
        handlers["file"] = {
            "class": _FILE, "formatter": "requests", "filename": str(access_log), "encoding": "utf-8",
        }  # fmt: skip
        requests.append("file")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": Lines, "verbose": verbose}, "requests": {"()": Requests}},
        "handlers": handlers,
        "loggers": {
            "uvicorn.error": {"handlers": ["terminal"], "level": "WARNING", "propagate": False},
            "uvicorn.access": {"handlers": requests, "level": "INFO", "propagate": False},
            "segue.app": {"handlers": ["terminal"], "level": "INFO" if verbose else "WARNING", "propagate": False},
        },
    }
