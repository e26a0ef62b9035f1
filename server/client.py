"""A client of a running server: what is refused is told, what cannot be answered just now is sent again."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import SHUT_RDWR
from types import TracebackType
from typing import NoReturn, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import ValidationError

from server.errors import BatchTooLarge, ClassifyFailed, InputRefused, SettingsError, TooManyInputs
from server.schemas import AdapterEntry, ClassifyResponse, Problem

RESPONSE_LIMIT_S = 120
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
Answer = TypeVar("Answer", AdapterEntry, ClassifyResponse)
BUSY = (429, 502, 503, 504)
INPUT = re.compile(r"inputs\[(\d+)\]")
SHOWN_CHARACTERS = 300


class Client:
    """Any thread may call it; each has a connection of its own, which stays open.

    Use it as a context manager, to be left when no thread uses it any more. Raises SettingsError for a wrong `url`.
    retry_s: how long a request that finds the server busy or away is sent again.
    """

    def __init__(self, url: str, api_key: str | None, retry_s: float) -> None:
        self.url, self._retry_s = url, retry_s
        self._kind, self._host, self._port, self._path = _address(url)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._own = threading.local()
        self._lock = threading.Lock()
        self._connections: list[HTTPConnection] = []  # guarded by the lock
        self._stopped = threading.Event()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()

    def stop(self) -> None:
        """End what threads wait for here: it raises ClassifyFailed there."""
        self._stopped.set()
        with self._lock:
            for connection in self._connections:
                sock = connection.sock
                if sock is not None:
                    with suppress(OSError):
                        sock.shutdown(SHUT_RDWR)

    def show_adapter(self, adapter_id: str) -> AdapterEntry:
        """What the server says of an adapter that it serves. Asked once only. Raises ClassifyFailed."""
        try:
            name = adapter_id.partition("@")[0]
            reply = self._send("GET", f"/v1/adapters/{quote(name, safe='')}", None)
        except (OSError, HTTPException) as error:
            raise ClassifyFailed(f"no server answers at {self.url}: {_reason(error)}") from error
        entry = _parse(AdapterEntry, reply) if reply.status == 200 else _refuse(reply)
        if entry.status == "failed" and entry.refusal is not None:
            raise ClassifyFailed(f"adapter `{adapter_id}` is not served: {entry.refusal.reason}")
        return entry

    def classify(self, body: Mapping[str, object]) -> ClassifyResponse:
        """The answer to one request, for which this waits as long as it may.

        Raises InputRefused, BatchTooLarge, and ClassifyFailed for all that will not change by waiting.
        """
        data = json.dumps(body).encode("ascii")
        give_up_at = None
        wait_s = FIRST_WAIT_S
        while True:
            asked_s = 0.0
            try:
                reply = self._send("POST", "/v1/classify", data)
                if reply.status == 200:
                    return _parse(ClassifyResponse, reply)
                if reply.status not in BUSY:
                    _refuse(reply)
                reason, asked_s = _explain(reply), reply.retry_after_s
            except (OSError, HTTPException) as error:
                reason = f"{self.url} does not answer: {_reason(error)}"
            now = time.monotonic()
            give_up_at = give_up_at if give_up_at is not None else now + self._retry_s
            left_s = give_up_at - now
            if left_s <= 0 or asked_s > left_s:
                asked = f", which asks to wait {asked_s:g} s" if asked_s else ""
                raise ClassifyFailed(f"{reason}{asked}; --retry-s is {self._retry_s:g}")
            # never sooner than asked; all at different times, so that they do not come back together
            if self._stopped.wait(min(left_s, max(asked_s, wait_s) * random.uniform(1, 1.5))):
                raise ClassifyFailed("the client was stopped")
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _send(self, method: str, path: str, data: bytes | None) -> _Reply:
        connection = self._connection()
        was_open = connection.sock is not None
        try:
            return self._send_once(connection, method, path, data)
        except (OSError, HTTPException) as error:
            connection.close()
            if not was_open or isinstance(error, TimeoutError) or self._stopped.is_set():
                raise
        try:  # the server may have closed an idle connection: that says nothing of the server
            return self._send_once(connection, method, path, data)
        except (OSError, HTTPException):
            connection.close()
            raise

    def _send_once(self, connection: HTTPConnection, method: str, path: str, data: bytes | None) -> _Reply:
        if connection.sock is None and not self._stopped.is_set():
            connection.connect()
        if self._stopped.is_set():  # asked once connected: `stop` shuts what is connected by then, and no more
            raise ClassifyFailed("the client was stopped")
        was_cut = False
        try:
            connection.request(method, self._path + path, data, self._headers)
        except BrokenPipeError:  # a server that refuses a long body answers before it has read it
            was_cut = True
        response = connection.getresponse()
        asked = response.headers.get("Retry-After", "")
        reply = _Reply(response.status, float(asked) if asked.isdecimal() else 0.0, response.read())
        if was_cut:
            connection.close()
        return reply

    def _connection(self) -> HTTPConnection:
        """The calling thread's own."""
        connection: HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._kind(self._host, self._port, timeout=RESPONSE_LIMIT_S)
            with self._lock:
                self._connections.append(connection)
        return connection


@dataclass(frozen=True, slots=True)
class _Reply:
    """retry_after_s: how long the server asks to wait, 0 where it does not."""

    status: int
    retry_after_s: float
    body: bytes


def _parse(kind: type[Answer], reply: _Reply) -> Answer:
    try:
        return kind.model_validate_json(reply.body)
    except ValidationError as error:
        raise ClassifyFailed(f"the answer is none of adaptermux: {_start(reply.body)}") from error


def _refuse(reply: _Reply) -> NoReturn:
    """Raise what a refusal means."""
    problem = _problem(reply)
    if reply.status == 413 or (problem is not None and problem.code == TooManyInputs.code):
        raise BatchTooLarge(_explain(reply))
    for wrong in (problem.errors or []) if problem is not None else []:
        match = INPUT.match(wrong.field)
        if match is not None:
            raise InputRefused(int(match[1]), wrong.message)
    raise ClassifyFailed(_explain(reply))


def _explain(reply: _Reply) -> str:
    problem = _problem(reply)
    if problem is None:
        return f"the server answered {reply.status}: {_start(reply.body)}"
    return f"the server answered {reply.status} ({problem.code}): {problem.detail}"


def _problem(reply: _Reply) -> Problem | None:
    try:
        return Problem.model_validate_json(reply.body)
    except ValidationError:
        return None


def _start(body: bytes) -> str:
    return ascii(body[:SHOWN_CHARACTERS].decode("utf-8", "replace"))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _address(url: str) -> tuple[type[HTTPConnection], str, int | None, str]:
    """How to connect, host, port, and what stands before every path."""
    with suppress(ValueError):  # no number of a port, or half an address in brackets
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
            return kind, parts.hostname, parts.port, parts.path.rstrip("/")
    raise SettingsError(f"--url is `{url}`, it must be like http://127.0.0.1:8000")
