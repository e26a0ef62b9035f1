"""The outermost layer of a request: its id, the headers of every answer, the access log, and uncaught bugs."""

from __future__ import annotations

import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs
from server.errors import AdaptermuxError
from server.failures import shaped
from server.routes.pages import DECISION, is_page
from server.trail import Trail

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
STATIC = "/static-offline-docs/"
DOCUMENTS = ("/docs", "/redoc")
SAFE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
NO_STORE = (b"cache-control", b"no-store")
ASK_AGAIN = (b"cache-control", b"no-cache")
NOTHING = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
# no script stands in a page, and none can write anything but text into it
OF_PAGES = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'",
)
# its form works without scripts too
OF_DECISION = (OF_PAGES[0], OF_PAGES[1].replace(b"form-action 'none'", b"form-action 'self'"))
# the documents' own script stands in the page; it can reach nothing but this server
OF_DOCUMENTS = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


class Edge:
    """Middleware around all others."""

    def __init__(self, app: ASGIApp, logs_access: bool) -> None:
        self._app, self._logs_access = app, logs_access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._visit(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _visit(self, scope: Scope, receive: Receive, send: Send) -> None:
        trail = Trail(_request_id(scope), time.perf_counter())
        scope.setdefault("state", {})["trail"] = trail

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                trail.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_headers(scope["path"], trail)]}
            await send(message)

        try:
            await self._app(scope, receive, marked)
        except Exception as error:
            logs.bug("request_crashed", error, request_id=trail.request_id)
            if not trail.status:
                bug = AdaptermuxError(f"{type(error).__name__} in the server; this is a bug")
                await shaped(scope, bug)(scope, receive, marked)
        finally:
            if self._logs_access:
                _log(scope, trail)


def _request_id(scope: Scope) -> str:
    """The client's, if it is safe to write anywhere."""
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return str(given[0], "ascii")
    return secrets.token_hex(16)


def _headers(path: str, trail: Trail) -> list[tuple[bytes, bytes]]:
    headers = [*SAFE, (b"x-request-id", trail.request_id.encode())]
    headers.append(_policy(path))
    if is_page(path) and path != DECISION and trail.status < 400:
        headers.append(ASK_AGAIN)
    elif not path.startswith(STATIC) or trail.status >= 400:  # caches keep a 404 too
        headers.append(NO_STORE)
    if trail.cards:
        total_ms = (time.perf_counter() - trail.began) * 1e3
        headers.append((b"server-timing", (
            f"tokenize;dur={trail.tokenize_ms:.3f}, queue;dur={trail.queue_ms:.3f}, "
            f"compute;dur={trail.compute_ms:.3f}, total;dur={total_ms:.3f}"
        ).encode()))  # fmt: skip
    return headers


def _policy(path: str) -> tuple[bytes, bytes]:
    if path == DECISION:
        return OF_DECISION
    return OF_PAGES if is_page(path) else OF_DOCUMENTS if path.startswith(DOCUMENTS) else NOTHING


def _log(scope: Scope, trail: Trail) -> None:
    logs.event(
        "request_answered",
        method=scope["method"],
        route=route_of(scope),
        status=trail.status,
        ms=round((time.perf_counter() - trail.began) * 1e3, 3),
        request_id=trail.request_id,
        key=trail.caller.key_id,
        tenant=trail.caller.tenant,
    )


def route_of(scope: Scope) -> str:
    """The template of the route, `/v1/adapters/{adapter_id}`; never what the client wrote."""
    return str(getattr(scope.get("route"), "path", "none"))
