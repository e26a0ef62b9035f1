"""A small real HTTP server that stands in front of another: it can be busy, stand still, and be gone."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIMIT_S = 60


@dataclass
class Reply:
    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


class Front(ThreadingHTTPServer):
    """Passes on what it is asked. What was asked before is answered the same, to the last digit.

    known: replies by body, None for whatever is only looked up.
    planned: replies to the next classifications, instead of passing them on.
    held: a classification that holds this is answered once `moving` is set.
    """

    daemon_threads = True

    def __init__(self, behind: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behind = behind
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.Lock()
        self.known: dict[bytes | None, Reply] = {}
        self.asked: list[bytes] = []
        self.keys: list[str | None] = []
        self.planned: list[Reply] = []
        self.held: bytes | None = None
        self.num_held = 0
        self.moving = threading.Event()
        self.is_gone = False

    @contextmanager
    def running(self) -> Iterator[Front]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.is_gone = True
            self.moving.set()
            self.shutdown()
            thread.join(LIMIT_S)
            self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""

    def reply_to(self, path: str, data: bytes | None, key: str | None) -> Reply | None:
        """None once it is gone."""
        must_wait = False
        with self.lock:
            self.keys.append(key)
            if data is not None:
                self.asked.append(data)
                if self.planned:
                    return self.planned.pop(0)
                must_wait = self.held is not None and self.held in data
                self.num_held += must_wait
        if must_wait:
            self.moving.wait(LIMIT_S)
        if self.is_gone:
            return None
        return self.known[data] if data in self.known else self._pass_on(path, data)

    def _pass_on(self, path: str, data: bytes | None) -> Reply:
        request = urllib.request.Request(self.behind + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
                reply = Reply(response.status, response.read())
        except urllib.error.HTTPError as error:
            with error:
                reply = Reply(error.code, error.read())
        if data is not None:
            self.known[data] = reply
        return reply


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Front

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["content-length"])))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""

    def _answer(self, data: bytes | None) -> None:
        reply = self.server.reply_to(self.path, data, self.headers["authorization"])
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "content-length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)
