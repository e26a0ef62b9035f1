"""Object stores on loopback: a whole one (moto), and a small one whose answers a test can spoil."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import obstore
import pytest
from obstore.store import from_url

LIMIT_S = 60
SECRET = "SECRETKEY"
CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "adapter.json"
ADAPTER = {CONFIG: b'{"peft_type": "LORA"}', WEIGHTS: b"weights" * 100, MANIFEST: b'{"schema": 1}'}


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str, timeout: str = "10s") -> None:
    """Let S3 and Google Cloud Storage be at an address, as an operator would."""
    key = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "SECRETID",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_TIMEOUT": timeout,
        "AWS_EC2_METADATA_DISABLED": "true",
        "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key),
        "GOOGLE_ALLOW_HTTP": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """A running S3; yields its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + LIMIT_S
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def make_bucket(name: str) -> None:
    address = f"{os.environ['AWS_ENDPOINT_URL']}/{name}"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=LIMIT_S).close()


def put(url: str, key: str, data: bytes) -> None:
    obstore.put(from_url(url), key, data)


def delete(url: str, keys: list[str]) -> None:
    obstore.delete(from_url(url), keys)


def put_adapter(url: str, prefix: str, files: dict[str, bytes] | None = None) -> None:
    for name, data in (ADAPTER if files is None else files).items():
        put(url, f"{prefix}/{name}", data)


def write_adapter(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (ADAPTER if files is None else files).items():
        (folder / name).write_bytes(data)
    return folder


class FaultyStore:
    """Answers GET and HEAD for `objects`, by key, of any bucket, and takes PUT.

    before: called with the request line's method and key; it may change objects, wait, or return a status to answer.
    cut_after: bytes after which the connection of every GET, or of the first `num_cuts`, is closed.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.before: Callable[[str, str], int | None] = lambda method, key: None
        self.cut_after: int | None = None
        self.num_cuts = 1_000
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT_S)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # the client has left
                    self.answer()

            do_HEAD = do_GET

            def do_PUT(self) -> None:
                key = unquote(self.path).split("/", 2)[2].partition("?")[0]
                store.requests.append(f"{self.command} {key}")
                data = self.rfile.read(int(self.headers["content-length"]))
                status = store.before(self.command, key)
                if status is None:
                    store.objects[key] = data
                self.send_response(status or 200)
                self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def answer(self) -> None:
                key = unquote(self.path).split("/", 2)[2].partition("?")[0]
                store.requests.append(f"{self.command} {key}")
                status = store.before(self.command, key)
                data = store.objects.get(key)
                if status is not None or data is None:
                    return self.empty(status or 404)
                tag = f'"{hashlib.md5(data).hexdigest()}"'
                if self.headers.get("if-match", tag) != tag:
                    return self.empty(412)
                start, stop = 0, len(data)
                if "range" in self.headers:
                    first, last = self.headers["range"].removeprefix("bytes=").split("-")
                    start, stop = int(first), min(int(last) + 1, stop)
                self.send_response(206 if "range" in self.headers else 200)
                self.send_header("ETag", tag)
                self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
                self.send_header("Content-Length", str(stop - start))
                if "range" in self.headers:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
                self.end_headers()
                if self.command == "GET":
                    part = data[start:stop]
                    if store.cut_after is not None and store.num_cuts > 0 and len(part) > store.cut_after:
                        store.num_cuts -= 1
                        part, self.close_connection = part[: store.cut_after], True
                    self.wfile.write(part)
                return None

            def empty(self, status: int) -> None:
                body = b"" if self.command == "HEAD" else f"<Error>{SECRET}</Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler
