"""How errors become answers: the status of each kind, and OpenAI's form of the body."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from ..errors import BudgetError, BusyError, OutputError, SegueError, UsageError
from . import schema
from .job_work import DEFECT, defect_of

STATUS: dict[type[SegueError], int] = {UsageError: 422, BudgetError: 422, BusyError: 429, OutputError: 507}
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": schema.Failure, "description": text}
    for code, text in {
        400: "OpenAI's endpoints: the request cannot be met", 401: "The token is missing or wrong",
        403: "From another site", 404: "Not found", 413: "Too large", 409: "Not possible in this state",
        422: "The request cannot be met", 429: "The queue is full", 500: "A bug in Segue", 507: "The disk is full",
    }.items()
}  # fmt: skip
KINDS = {401: "Unauthorized", 404: "NotFound", 405: "MethodNotAllowed", 409: "Conflict"}
CODES = {"UsageError": "invalid_value", "BudgetError": "budget_exceeded", "BusyError": "queue_full"}
OPENAI = ("/v1/images", "/v1/models")  # answered with OpenAI's statuses and types, which its clients know
WORDS = {
    "bool_type": "it must be true or false",
    "bytes_type": "it must be a file",
    "float_type": "it must be a number",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "int_from_float": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_type": "it must be a whole number",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be {expected}",
    "string_too_long": "it must have at most {max_length} characters",
    "string_type": "it must be a string",
    "too_long": "it must have at most {max_length} entries",
    "string_unicode": "it must be valid Unicode",
}  # pydantic's kinds of errors, for people


class Refused(HTTPException):
    """An answer with a status, a sentence, and if known the name of the key (`param`) and a `code` for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


def add_failures(app: FastAPI) -> None:
    """Have the application answer every error in the same form."""
    app.add_exception_handler(SegueError, _failed)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _defect)


def status_of(kind: str) -> int:
    """Return the status of an error by the name of its class."""
    return {of.__name__: status for of, status in STATUS.items()}.get(kind, 500)


def _answer(
    http: Request, status: int, message: str, kind: str, param: str | None = None, code: str | None = None
) -> JSONResponse:
    if http.scope["path"].startswith(OPENAI):
        code = code or CODES.get(kind)
        status = 400 if status == 422 else status
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    fault = schema.Failure(error=schema.Fault(message=message, type=kind, param=param, code=code))
    headers = {"Retry-After": "1"} if status == 429 else {}
    if status == 409 or status >= 500:  # OpenAI's clients would send the request again, with the same result
        headers["x-should-retry"] = "false"
    return JSONResponse(fault.model_dump(), status, headers)


def _failed(http: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return _answer(http, status, str(error), type(error).__name__)


def _malformed(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    given = first.get("ctx", {})
    keys = first["loc"][2 if first["loc"][1:2] in (("picture",), ("video",)) else 1 :]  # the union's tag is not a key
    place = given.get("param") or ".".join(map(str, keys)) or None
    if first["loc"][0] == "path":
        what = "job" if place == "identifier" else place
        text = f"there is no {what} {_short(first['input'])}. List the jobs at /v1/jobs."
        return _answer(http, 404, text, KINDS[404], place)
    code = None
    if "param" in given:  # a check of Segue's own
        text, code = first["msg"], first["type"]
    elif first["type"] in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type"):
        text = 'the body must be a JSON object with "kind" picture or video, sent as Content-Type: application/json. '
        if http.scope["path"].startswith(OPENAI):
            text = "the body must be a JSON object, sent as Content-Type: application/json. "
        text += "Correct it and send it again."
    elif first["type"] == "json_invalid":
        place, at = None, place  # the place in the text is not a key
        why = given["error"].removesuffix(" starting at")
        text = f"the body is not valid JSON at character {at}: {why}. Correct it and send it again."
    elif first["type"] == "missing":
        text = f"{place or 'the body'} is missing. Add it and send it again."
    else:
        known = WORDS.get(first["type"])
        words = first["msg"].rstrip(".") if known is None else known.format(**given)
        text = f"{place or 'the body'} = {_short(first['input'])}: {words}. Correct it and send it again."
    return _answer(http, 422, text, UsageError.__name__, place, code)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _defect(http: Request, error: Exception) -> JSONResponse:
    return _answer(http, 500, defect_of(error), DEFECT)


def _refused(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status, text = error.status_code, str(error.detail)
    if text in ("Not Found", "Method Not Allowed"):  # the framework's words
        path = http.scope["path"]
        known = any(isinstance(of, APIRoute) and of.path_regex.match(path) for of in http.app.routes)
        status, code = (405, None) if known else (404, "unknown_url")
        text = f"this server has no {http.method} {_short(path)}. See /docs for what it has."
        return _answer(http, status, text, KINDS[status], None, code)
    kind = KINDS.get(status, "Refused")
    return _answer(http, status, text, kind, getattr(error, "param", None), getattr(error, "code", None))
