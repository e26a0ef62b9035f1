"""What may be too long, too slow or too odd about a request before anything of it is parsed."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, BodyTooSlow, HeadTooLarge, RequestError, UnsupportedMediaType
from server.failures import shaped
from server.metrics import Meter
from server.routes import batch

MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 << 10
MAX_URL_BYTES = 8 << 10
MAX_DIGITS = 15


class RequestLimits:
    """Middleware: refuses by the head what can be refused by it, and stops reading a body that breaks its limits.

    A body has `read_s` seconds from the head to its last byte. That of a batch may be of any length, and has as long
    for each part that the server is ready to read: it limits its lines itself.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, read_s: float, metrics: Meter) -> None:
        self._app, self._max_body_bytes, self._read_s, self._metrics = app, max_body_bytes, read_s, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (error := self._wrong(scope)) is not None:
            self._metrics.refused(error.code)
            await shaped(scope, error)(scope, receive, send)
        else:
            await self._app(scope, self._reading(receive, is_stream=scope["path"] == batch.PATH), send)

    def _wrong(self, scope: Scope) -> RequestError | None:
        headers = scope["headers"]
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            return HeadTooLarge(f"a request may have {MAX_HEADERS} headers, of {MAX_HEADER_BYTES} bytes in all")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_URL_BYTES:
            return HeadTooLarge(f"the address has more than {MAX_URL_BYTES} bytes")
        for name, value in headers:
            if name == b"content-length" and self._is_too_large(scope, value):
                return self._too_large()
            if name == b"content-encoding" and value.strip().lower() != b"identity":
                return UnsupportedMediaType("the body has a content-encoding; send it as it is")
        return None

    def _is_too_large(self, scope: Scope, length: bytes) -> bool:
        return scope["path"] != batch.PATH and (len(length) > MAX_DIGITS or int(length) > self._max_body_bytes)

    def _reading(self, receive: Receive, is_stream: bool) -> Receive:
        num_bytes, is_whole = 0, False
        now = asyncio.get_running_loop().time
        deadline = now() + self._read_s

        async def limited() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:
                return await receive()  # what comes now is that the client leaves
            try:
                async with asyncio.timeout_at(now() + self._read_s if is_stream else deadline):
                    message = await receive()
            except TimeoutError:
                self._metrics.refused(BodyTooSlow.code)
                raise BodyTooSlow(f"the body did not come within {self._read_s:g} s") from None
            num_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if num_bytes > self._max_body_bytes and not is_stream:
                self._metrics.refused(BodyTooLarge.code)
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body has more than {self._max_body_bytes} bytes, the most that are taken")
