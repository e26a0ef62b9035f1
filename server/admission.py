"""Who is let in: once there are keys, nobody without one, whatever they ask for but health and pages."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from server.callers import ANYBODY, NOBODY, Caller
from server.errors import NotAuthenticated
from server.failures import shaped
from server.keys import Keys
from server.metrics import Meter
from server.routes.pages import is_page
from server.trail import Trail

OPEN = ("/health/", "/v2/health/")


class Admission:
    """Middleware: says who asks, or answers 401 before anything of the request but its head is read."""

    def __init__(self, app: ASGIApp, keys: Keys | None, has_pages: bool, metrics: Meter) -> None:
        self._app, self._keys, self._has_pages, self._metrics = app, keys, has_pages, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = self._caller(scope)
        if caller is None:
            # one answer for no key, an unknown one and one that has expired: nothing is to be learnt from it
            error = NotAuthenticated("this server needs a key that it knows: send `Authorization: Bearer KEY`")
            self._metrics.refused(error.code)
            await shaped(scope, error)(scope, receive, send)
            return
        trail: Trail = scope["state"]["trail"]
        trail.caller = scope["state"]["caller"] = caller
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller | None:
        if self._keys is None:
            return ANYBODY
        found = {key for name, value in scope["headers"] if (key := _key_in(name, value)) is not None}
        caller = self._keys.caller(found.pop()) if len(found) == 1 else None
        if caller is None and (scope["path"].startswith(OPEN) or (self._has_pages and is_page(scope["path"]))):
            return NOBODY
        return caller


def _key_in(name: bytes, value: bytes) -> bytes | None:
    """The key in a header, if it is one that holds a key. Two different keys in a request are none."""
    if name == b"x-api-key":
        return value.strip()
    if name == b"authorization":
        scheme, _, key = value.strip().partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else None
    return None
