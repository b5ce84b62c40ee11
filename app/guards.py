"""The checks before every request: its sender, its origin and its size."""

from __future__ import annotations

import hmac
import json
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import cookie_parser

COOKIE = "segue-token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Scope = dict[str, Any]


class Guards:
    """ASGI middleware that refuses requests of other origins.

    `local`: only requests to a loopback name or to one of `hosts` pass. This stops another site whose name resolves to
    this machine (DNS rebinding). A slash at the end of an endpoint is ignored. `token` is a bearer token; POST
    /v1/session sets the cookie `cookie_of(token)` instead. Paths in `public` need no token. Bodies above `largest`
    bytes are refused, whatever length they announce. HEAD gets the answer of GET without its body.
    """

    def __init__(
        self, app: Any, token: str | None, largest: int, public: tuple[str, ...], local: bool,
        hosts: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.app, self.token, self.largest, self.public, self.local = app, token or None, largest, public, local
        self.hosts = (*LOOPBACK, *(host.lower() for host in hosts))

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].startswith("/v1/"):
            scope = scope | {"path": scope["path"].rstrip("/")}
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if fault := self._fault(scope, headers):
            await _answer(send, *fault)
            return
        seen, started, refused = 0, False, False
        head = scope["method"] == "HEAD"
        if head:
            scope = scope | {"method": "GET"}

        async def bounded() -> Any:
            nonlocal seen, refused
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.largest and not started:
                refused = True
                await _answer(send, *self._too_large())
                return {"type": "http.disconnect"}
            return message

        async def answer(message: Any) -> None:
            nonlocal started
            started = True
            if head and message["type"] == "http.response.body":
                message = message | {"body": b""}
            if not refused:
                await send(message)

        await self.app(scope, bounded, answer)

    def _fault(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if self.local and (name := _name(f"//{host}")) not in self.hosts:
            way = f"start the server with --allow-host {name}" if name else "send a Host header"
            text = f"the host {host!r} is not this machine. Use http://127.0.0.1 and the port, or {way}."
            return 403, "Forbidden", text
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "Forbidden", f"pages of {origin!r} may not use this server. Open the server's own page."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.largest:
            return self._too_large()
        if self.token is not None and scope["path"] not in self.public and not self._known(headers):
            return 401, "Unauthorized", "the token is missing or wrong. Send it as Authorization: Bearer TOKEN."
        return None

    def _known(self, headers: dict[str, str]) -> bool:
        assert self.token is not None
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        known = ((bearer, self.token), (cookie, cookie_of(self.token)))
        return any(hmac.compare_digest(given.encode(), right.encode()) for given, right in known)

    def _too_large(self) -> tuple[int, str, str]:
        return 413, "TooLarge", f"the body is larger than {self.largest} bytes. Send a smaller picture."


def cookie_of(token: str) -> str:
    """Return the cookie's value. It is not the token, because a browser sends it to every port of this host."""
    return hmac.new(token.encode(), b"segue session", "sha256").hexdigest()


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _answer(send: Any, status: int, kind: str, message: str) -> None:
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
