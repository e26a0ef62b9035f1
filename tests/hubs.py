"""A small Hugging Face hub on loopback."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.buckets import LIMIT_S, SECRET

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub of one model, `me/reviews`, with a branch `main` and a tag `v1`, both at one commit.

    What is committed to it takes the place of its files. private: as the model was made, None before that.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.status = 200
        self.commit_of_files = COMMIT
        self.downloads: list[str] = []
        self.private: bool | None = None
        self.tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT_S)

    def answer(self, path: str, method: str) -> tuple[int, bytes, dict[str, str]]:
        if self.status != 200:
            return self.status, SECRET.encode(), {}
        for revision in ("main", "v1", COMMIT):
            if path.partition("?")[0] == f"/api/models/me/reviews/revision/{revision}":
                siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
                return 200, json.dumps({"id": "me/reviews", "sha": COMMIT, "siblings": siblings}).encode(), {}
        folder, _, name = path.rpartition("/")
        if folder.startswith("/me/reviews/resolve/") and name in self.files:
            if method == "GET":
                self.downloads.append(name)
            return 200, self.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": self.commit_of_files}
        code = "RepoNotFound" if "me/reviews" not in path else "RevisionNotFound"
        return 404, b"", {"X-Error-Code": code}

    def take(self, path: str, body: bytes) -> tuple[int, bytes]:
        """What is written: a new model, or a commit to a branch."""
        if self.status != 200:
            return self.status, SECRET.encode()
        if path == "/api/repos/create":
            asked = json.loads(body)  # releases of the library differ
            self.private = asked["private"] if "private" in asked else asked["visibility"] == "private"
            return 200, json.dumps({"url": f"{self.url}/me/reviews"}).encode()
        if path == "/api/validate-yaml":
            return 200, b'{"errors": [], "warnings": []}'
        if path.startswith("/api/models/me/reviews/preupload/"):
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **plain} for file in json.loads(body)["files"]]
            return 200, json.dumps({"files": files}).encode()
        if path.startswith("/api/models/me/reviews/commit/"):
            lines = [json.loads(line)["value"] for line in body.splitlines() if b'"file"' in line]
            self.files = {line["path"]: base64.b64decode(line["content"]) for line in lines}
            return 200, json.dumps(
                {"commitOid": COMMIT, "commitUrl": f"{self.url}/me/reviews/commit/{COMMIT}"}
            ).encode()
        return 404, b""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body, headers = hub.answer(self.path, self.command)
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                hub.tokens.add(self.headers.get("authorization", ""))
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, answer = hub.take(self.path.partition("?")[0], body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler
