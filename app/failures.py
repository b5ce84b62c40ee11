"""How errors become answers: the status of each kind, and OpenAI's form of the body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import BudgetError, BusyError, OutputError, SegueError, UsageError
from . import schema
from .runner import DEFECT, defect_of

STATUS: dict[type[SegueError], int] = {UsageError: 422, BudgetError: 422, BusyError: 429, OutputError: 507}
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": schema.Failure, "description": text}
    for code, text in {
        400: "Not JSON", 401: "The token is missing or wrong", 403: "From another site", 404: "Not found",
        413: "Too large", 409: "Not possible in this state", 422: "The request cannot be met",
        429: "The queue is full", 500: "A bug in Segue", 507: "The disk is full",
    }.items()
}  # fmt: skip


def add_failures(app: FastAPI) -> None:
    """Have the application answer every error in the same form."""
    app.add_exception_handler(SegueError, _failed)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _defect)


def _body(status: int, message: str, kind: str, param: str | None = None) -> JSONResponse:
    fault = schema.Failure(error=schema.Fault(message=message, type=kind, param=param))
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse(fault.model_dump(), status, headers)


def _failed(http: Request, error: Exception) -> JSONResponse:
    codes: Iterator[int] = (code for kind, code in STATUS.items() if isinstance(error, kind))
    return _body(next(codes, 500), str(error), type(error).__name__)


def _malformed(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    keys = first["loc"][2 if first["loc"][1:2] in (("picture",), ("video",)) else 1 :]  # the union's tag is not a key
    place = ".".join(map(str, keys)) or None
    if first["loc"][0] == "path":
        return _body(404, f"there is no job {first['input']!r}. List the jobs at /v1/jobs.", "HTTPException", place)
    if first["type"] == "extra_forbidden":
        text = f"the key {place} is unknown; known are {_keys_of(first['loc'])}. Leave it out."
    elif first["type"] in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type"):
        text = (
            'the body must be a JSON object with "kind" picture or video, sent as Content-Type: application/json. '
            "Correct it and send it again."
        )
    elif first["type"] == "json_invalid":
        text = (
            f"the body is not valid JSON: {first['ctx']['error']}, at character {place}. Correct it and send it again."
        )
    else:
        given = "" if first["type"] in ("missing", "size") else f" = {_short(first['input'])}"
        text = f"{place or 'the body'}{given}: {first['msg'].rstrip('.')}. Correct it and send it again."
    return _body(422, text, "UsageError", place)


def _keys_of(place: tuple[Any, ...]) -> str:
    known = {"picture": schema.PictureRequest.model_fields, "video": schema.VideoRequest.model_fields}
    return ", ".join(known.get(place[1], ["those of /openapi.json"]))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _defect(http: Request, error: Exception) -> JSONResponse:
    return _body(500, defect_of(error), DEFECT)


def _refused(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _body(error.status_code, str(error.detail), "HTTPException")
