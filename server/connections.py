"""Connections: how many there may be, and how long each may take over what it sends and what it is sent."""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.edges import NO_STORE, NOTHING, SAFE
from server.errors import AdaptermuxError, InvalidHttp, Overloaded
from server.problems import problem
from server.request_limits import MAX_HEADER_BYTES
from server.settings import Settings

SPARE_FILES = 512
"""Open files besides connections: weights that are being read, sources, the log."""


def web_server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    """A server of the application that holds the settings' limits."""
    _allow_files(settings.max_connections + SPARE_FILES)
    limits = {"max_connections": settings.max_connections, "patience_s": settings.read_s}
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=type("LimitedConnection", (Connection,), limits),
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_level="error",
            lifespan="off",
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.drain_s,
        )
    )


class Connection(H11Protocol):
    """uvicorn's connection, with an end to it in every state. h11 reads strictly and bounds what it keeps of a head.

    patience_s: from a request's first byte to the end of its head, for what still comes of a refused body, and for
    the client to take what it is sent.
    """

    max_connections: ClassVar[int]
    patience_s: ClassVar[float]
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
        # asyncio does so itself only for sockets that were made with the protocol's number
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.max_connections:
            transport.write(FULL)
            transport.close()
        else:
            self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reading = _cancelled(self._reading)
        self._writing = _cancelled(self._writing)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing = _cancelled(self._writing)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # closing waits until all is sent, which may be never
        self._writing = self._writing or self.loop.call_later(self.patience_s, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is not h11.SEND_BODY:
            self.transport.write(NOT_HTTP)
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # to nothing, and without a warning in the log

    def _watch_reading(self) -> None:
        """Time runs while bytes are awaited that no route awaits."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._reading = _cancelled(self._reading)
        elif self._reading is None:
            self._reading = self.loop.call_later(self.patience_s, self.transport.close)


class Joined:
    """A transport that writes once what it is given within one turn of the loop: an answer's head with its body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


def _allow_files(wanted: int) -> None:
    """Let this process have as many files open as its connections need, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _raw(error: AdaptermuxError) -> bytes:
    """An answer to what has not become a request."""
    response = problem(error)
    headers = [*response.raw_headers, *SAFE, NOTHING, NO_STORE, (b"connection", b"close")]
    lines = [f"HTTP/1.1 {error.status} {error.code}".encode(), *(b": ".join(one) for one in headers), b"", b""]
    return b"\r\n".join(lines) + bytes(response.body)


FULL = _raw(Overloaded("the server has as many connections as it takes"))
NOT_HTTP = _raw(InvalidHttp(f"this is no HTTP/1.1 request with a head of at most {MAX_HEADER_BYTES} bytes"))
