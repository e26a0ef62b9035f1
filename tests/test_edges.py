"""The edges of the HTTP side: limits before anything is parsed, slow clients, headers, ids, logs. By raw sockets."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.connections import web_server
from server.gate import Gate
from server.keys import Keys
from server.request_limits import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES
from server.service import Service
from server.settings import Settings
from tests.serving import bearer, endpoints, entry, listening, make_adapters, settings_for, until, write_keys

MAX_BODY_BYTES = 400_000
READ_S = 0.5
BODY = {"adapter_id": "one", "inputs": "word1"}
JSON = "content-type: application/json"


@pytest.fixture(scope="module")
def adapters(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(tmp_path_factory.mktemp("edged"), bert_base, ["one", "two"])


@pytest.fixture(scope="module")
def settings(adapters: Path, bert_base: BaseModel) -> Settings:
    return settings_for(adapters, bert_base, read_s=READ_S, max_connections=20, drain_s=5)


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[Service]:
    with Service(settings) as service:
        yield service


@pytest.fixture(scope="module")
def address(service: Service, settings: Settings) -> Iterator[tuple[str, int]]:
    with listening(create_app(service.desk, MAX_BODY_BYTES, Gate(read_s=READ_S)), settings) as address:
        yield address


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service.desk, MAX_BODY_BYTES)) as client:
        yield client


class Answer:
    """What came back on a raw connection until its end, or until the answer was whole."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1]) if first else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def is_whole(self) -> bool:
        if "content-length" in self.headers:
            return len(self.body) >= int(self.headers["content-length"])
        return self.headers.get("transfer-encoding") == "chunked" and self.body.endswith(b"0\r\n\r\n")


def dial(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=30)


def exchange(address: tuple[str, int], *pieces: bytes) -> Answer:
    """Send pieces as they are, and read one answer."""
    with dial(address) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return receive(connection)


def receive(connection: socket.socket) -> Answer:
    raw = b""
    while True:
        if b"\r\n\r\n" in raw and (answer := Answer(raw)).is_whole():
            return answer
        more = connection.recv(65536)
        if not more:
            return Answer(raw)
        raw += more


def head(*lines: str, target: str = "POST /v1/classify", length: int | None = None) -> bytes:
    lines = (*lines, JSON) if length is None else (*lines, JSON, f"content-length: {length}")
    return f"{target} HTTP/1.1\r\nhost: x\r\n{''.join(line + chr(13) + chr(10) for line in lines)}\r\n".encode()


def post(address: tuple[str, int], body: bytes, *lines: str) -> Answer:
    return exchange(address, head(*lines, length=len(body)) + body)


def code(answer: Answer) -> Any:
    return json.loads(answer.body)["code"]


def well(address: tuple[str, int]) -> None:
    """The server still answers."""
    assert post(address, json.dumps(BODY).encode()).status == 200


# -- too much --


@pytest.mark.parametrize("length", [str(MAX_BODY_BYTES + 1), "9" * 15, "9" * 16])
def test_a_body_whose_length_is_too_long_is_refused_before_it_is_sent(address: tuple[str, int], length: str) -> None:
    answer = exchange(address, head(f"content-length: {length}"))
    assert (answer.status, code(answer)) == (413, "body_too_large")
    expecting = exchange(address, head(f"content-length: {length}", "expect: 100-continue"))
    assert expecting.status == 413, "and not asked for"
    well(address)


def test_a_body_without_a_length_is_refused_where_it_gets_too_long(address: tuple[str, int]) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = exchange(address, head("transfer-encoding: chunked"), *[chunk] * (MAX_BODY_BYTES // 65536 + 1))
    assert (answer.status, code(answer)) == (413, "body_too_large")
    well(address)


def test_a_body_of_just_the_size_is_read(address: tuple[str, int]) -> None:
    body = json.dumps(BODY).encode()
    assert post(address, body + b" " * (MAX_BODY_BYTES - len(body))).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "identity, gzip"])
def test_a_compressed_body_is_never_unpacked(address: tuple[str, int], encoding: str) -> None:
    answer = post(address, b"\x1f\x8b" + b"\0" * 100, f"content-encoding: {encoding}")
    assert (answer.status, code(answer)) == (415, "unsupported_media_type")


def test_so_many_headers_are_read_and_not_one_more(address: tuple[str, int]) -> None:
    body = json.dumps(BODY).encode()
    fitting = [f"x-{index}: y" for index in range(MAX_HEADERS - 3)]  # host, content-type, content-length
    assert post(address, body, *fitting).status == 200
    answer = post(address, body, *fitting, "x-one: more")
    assert (answer.status, code(answer)) == (431, "head_too_large")


@pytest.mark.parametrize("num_pieces", [1, 40])
def test_a_head_that_is_too_long_is_refused_whether_it_comes_at_once_or_in_pieces(
    address: tuple[str, int], num_pieces: int
) -> None:
    sent = head("x-long: " + "y" * (MAX_HEADER_BYTES + 1000), length=0)
    size = -(-len(sent) // num_pieces)
    with dial(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for start in range(0, len(sent), size):
                connection.sendall(sent[start : start + size])
            answer = receive(connection)
            assert answer.status in (400, 431)
            assert code(answer) in ("invalid_http", "head_too_large")
        except ConnectionError:
            assert num_pieces > 1, "it was answered and closed while we were still sending"
    well(address)


def test_an_address_that_is_too_long_is_refused(address: tuple[str, int]) -> None:
    fitting = "GET /v1/base?x=" + "y" * (MAX_URL_BYTES - len("/v1/base") - len("x="))
    assert exchange(address, head(target=fitting)).status == 200
    answer = exchange(address, head(target=fitting + "y"))
    assert (answer.status, code(answer)) == (431, "head_too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 60_000,
        b'{"adapter_id": "one", "inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"adapter_id": "one", "inputs": "word1", "top_k": ' + b"9" * 100_000 + b"}",
        b'{"adapter_id": "one", "inputs": "word1", "top_k": 1e999999}',
        b'{"adapter_id": "one", "inputs": "word1", "threshold": NaN}',
        b'{"adapter_id": "one", "inputs": "word1", "threshold": -Infinity}',
        b'{"adapter_id": "one", "inputs": "word1", "inputs": 7}',
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b"null",
    ],
    ids=lambda body: body[:60].decode("latin-1"),
)
def test_bombs_in_json_are_the_callers_mistake(address: tuple[str, int], body: bytes) -> None:
    answer = post(address, body)
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.body) < 2000
    well(address)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/base\r\n\r\n",
        b"GET /v1/base HTTP/1.1\r\n\r\n",
        b"GET /v1/base HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET /v1/base HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_no_request_is_400_and_the_connection_is_closed(address: tuple[str, int], sent: bytes) -> None:
    with dial(address) as connection:
        connection.sendall(sent)
        answer = receive(connection)
        assert connection.recv(1) == b""
    assert answer.status in (400, 501)
    assert code(answer) == "invalid_http"
    well(address)


def test_a_body_that_breaks_off_its_chunks_ends_the_connection_only(address: tuple[str, int]) -> None:
    assert exchange(address, head("transfer-encoding: chunked"), b"5\r\nhello\r\nzz\r\n").status in (0, 400)
    well(address)


def test_a_second_request_is_not_read_out_of_the_body_of_a_first(address: tuple[str, int]) -> None:
    """Where both are said, chunks count and the length does not; the rest is no request of ours."""
    hidden = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    sent = head("transfer-encoding: chunked", length=5 + len(hidden)) + b"0\r\n\r\n"
    with dial(address) as connection:
        connection.sendall(sent)
        assert receive(connection).status >= 400


def test_an_upgrade_is_not_followed(address: tuple[str, int]) -> None:
    answer = exchange(address, head("connection: upgrade", "upgrade: websocket", target="GET /v1/base"))
    assert answer.status == 200


# -- too slow --


def closes(connection: socket.socket) -> float:
    """After how many seconds the other side ends the connection."""
    began = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"P", b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-a"])
def test_a_head_that_does_not_come_to_its_end_ends_the_connection(address: tuple[str, int], sent: bytes) -> None:
    with dial(address) as connection:
        connection.sendall(sent)
        assert closes(connection) < 10 * READ_S


def test_a_connection_that_nobody_uses_is_kept_for_the_time_that_is_set(service: Service, settings: Settings) -> None:
    short = settings.model_copy(update={"keep_alive_s": 1})
    with listening(create_app(service.desk, MAX_BODY_BYTES), short) as address, dial(address) as connection:
        for _ in range(2):  # the time begins anew with every request
            connection.sendall(head(target="GET /health/live"))
            assert receive(connection).status == 200
        assert 0.9 < closes(connection) < 4


def test_it_is_kept_for_longer_than_a_balancer_in_front_keeps_its_own(service: Service, settings: Settings) -> None:
    """Or this side ends it while the next request is on its way: AWS' and nginx' balancers keep 60 s."""
    assert web_server(create_app(service.desk, MAX_BODY_BYTES), settings).config.timeout_keep_alive > 60


def trickle(connection: socket.socket, stop: threading.Event) -> None:
    """A byte from time to time, for as long as anybody listens."""
    while not stop.wait(READ_S / 10):
        try:
            connection.sendall(b"x")
        except OSError:
            return


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v1/base HTTP/1.1\r\nx: ", 0),
        (head(length=1000) + b'{"inputs": "', 408),
        (head(length=MAX_BODY_BYTES + 1), 413),
        (head("content-encoding: gzip", length=1000), 415),
        (head(target="POST /v1/nothing", length=1000), 404),
    ],
    ids=["head", "body", "body refused by its length", "body refused by its type", "body of no route"],
)
def test_whoever_sends_a_byte_from_time_to_time_is_dropped(address: tuple[str, int], sent: bytes, status: int) -> None:
    stop = threading.Event()
    with dial(address) as connection, ThreadPoolExecutor(1) as pool:
        connection.sendall(sent)
        pool.submit(trickle, connection, stop)
        try:
            answer = receive(connection)
            assert answer.status == status
            if status == 408:
                assert code(answer) == "body_too_slow"
            assert closes(connection) < 10 * READ_S
        finally:
            stop.set()
    well(address)


def test_a_request_that_takes_longer_than_a_client_may_is_answered(
    address: tuple[str, int], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    embeddings: Any = service.base.backbone.embeddings
    embed = embeddings.forward

    def slow(**inputs: Any) -> Any:
        entered.set()
        leave.wait(3 * READ_S)
        return embed(**inputs)

    with monkeypatch.context() as patch, dial(address) as connection:
        patch.setattr(embeddings, "forward", slow)
        body = json.dumps(BODY).encode()
        connection.sendall(head(length=len(body)) + body)
        assert entered.wait(30)
        assert receive(connection).status == 200
        connection.sendall(head(length=len(body)) + body)
        assert receive(connection).status == 200, "and the connection lives on"


def test_a_client_that_does_not_read_is_dropped(address: tuple[str, int]) -> None:
    """It asks for the largest page we have, often enough to fill every buffer on the way."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(address)
        requests = head(target="GET /static-offline-docs/swagger-ui-bundle.js") * 100_000
        with pytest.raises(ConnectionError):
            connection.sendall(requests)  # our own side fills up too, until the connection is reset
    well(address)


def test_so_many_connections_are_taken_and_not_one_more(address: tuple[str, int], settings: Settings) -> None:
    held = [dial(address) for _ in range(settings.max_connections)]
    try:
        with dial(address) as connection:
            answer = receive(connection)
        assert (answer.status, code(answer)) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    finally:
        for connection in held:
            connection.close()
    until(lambda: exchange(address, head(target="GET /health/live")).status == 200)


def test_an_answer_on_a_connection_that_is_kept_does_not_wait_for_the_clients_acknowledgement(
    address: tuple[str, int],
) -> None:
    """Head and body are written one after the other; held back until the head is acknowledged, a body takes 40 ms."""
    times = []
    with dial(address) as connection:
        for _ in range(30):
            began = time.monotonic()
            connection.sendall(head(target="GET /v1/base"))
            assert receive(connection).status == 200
            times.append(time.monotonic() - began)
    assert min(times[-15:]) < 0.03


# -- what every answer says --


@pytest.fixture(scope="module")
def keyed(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = write_keys(tmp_path_factory.mktemp("keys") / "keys.json", entry("operator-1", "classify", "metrics"))
    with TestClient(create_app(service.desk, MAX_BODY_BYTES, Gate(Keys(path)))) as client:
        yield client


def check_headers(headers: Any, kept: str | None = "no-store") -> None:
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers.get("cache-control") == kept
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


def test_every_answer_has_the_headers_that_keep_it_safe(client: TestClient, keyed: TestClient) -> None:
    for asked in (client, keyed):
        for method, path in [*endpoints(asked.app), ("GET", "/nothing"), ("DELETE", "/v1/base")]:
            response = asked.request(method, path, headers={"origin": "https://elsewhere.example"})
            is_page = path == "/" and response.status_code == 200
            check_headers(response.headers, kept="no-cache" if is_page else "no-store")
            assert response.headers["x-request-id"]


def test_the_pages_own_files_may_be_kept(client: TestClient) -> None:
    check_headers(client.get("/static-offline-docs/swagger-ui.css").headers, kept=None)


def test_answers_to_what_is_no_request_have_them_too(address: tuple[str, int]) -> None:
    check_headers(exchange(address, b"nonsense\r\n\r\n").headers)
    check_headers(exchange(address, head(length=MAX_BODY_BYTES + 1)).headers)
    check_headers(exchange(address, head(target="GET /v1/base")).headers)


def test_the_pages_may_run_their_own_scripts_and_nothing_else_may(client: TestClient) -> None:
    assert "script-src 'self'" in client.get("/docs").headers["content-security-policy"]
    assert "script-src" not in client.get("/v1/base").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ("0af7651916cd43dd8448eb211c80319c", True),
        ("a", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("two words", False),
        ('x","event":"forged', False),
        ("é", False),
    ],
)
def test_a_request_id_is_echoed_if_it_is_safe_and_made_otherwise(
    client: TestClient, given: str, is_taken: bool
) -> None:
    echoed = client.get("/v1/nothing", headers=[(b"x-request-id", given.encode())]).headers["x-request-id"]
    assert (echoed == given) == is_taken
    assert is_taken or len(echoed) == 32


def test_a_classification_says_where_its_time_went(client: TestClient) -> None:
    response = client.post("/v1/classify", json=BODY)
    told = {}
    for part in response.headers["server-timing"].split(", "):
        name, _, value = part.partition(";dur=")
        told[name] = float(value)
    assert list(told) == ["tokenize", "queue", "compute", "total"]
    timing = response.json()["timing_ms"]
    assert all(abs(told[name] - timing[name]) < 0.002 for name in timing)
    assert told["total"] >= told["compute"] > 0
    fanned = client.post("/v1/classify/fanout", json={"adapters": ["one", "two"], "inputs": "word1"})
    assert "compute;dur=" in fanned.headers["server-timing"]
    assert "server-timing" not in client.get("/v1/base").headers


def test_scripts_of_other_pages_may_call_only_if_their_origin_is_named(service: Service, tmp_path: Path) -> None:
    keys = Keys(write_keys(tmp_path / "keys.json", entry("reader-1", "classify")))
    app = create_app(service.desk, MAX_BODY_BYTES, Gate(keys, cors_origins=("https://app.example.org",)))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with TestClient(app) as client:
        for origin, status in (("https://app.example.org", 200), ("https://evil.example.org", 400)):
            response = client.options("/v1/classify", headers={"origin": origin, **asks})
            assert response.status_code == status
            assert ("access-control-allow-origin" in response.headers) == (status == 200)
        headers = bearer("reader-1") | {"origin": "https://app.example.org"}
        response = client.post("/v1/classify", json=BODY, headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://app.example.org"
        assert "access-control-allow-credentials" not in response.headers


# -- logs --


def test_the_access_log_says_who_asked_what_and_never_with_what(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_keys(tmp_path / "keys.json", entry("acme-1", "classify", tenant="acme"), acme={"adapters": ["*"]})
    with TestClient(create_app(service.desk, MAX_BODY_BYTES, Gate(Keys(path), logs_access=True))) as client:
        headers = bearer("acme-1") | {"X-Request-Id": "trace-me"}
        client.post("/v1/adapters/one/classify?secret=1", json={"inputs": "word1"}, headers=headers)
        client.get("/v1/none/secret")
        client.get("/secret", headers=headers)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["route"], line["status"], line["key"], line["tenant"]) for line in lines] == [
        ("/v1/adapters/{adapter_id}/classify", 200, "acme", "acme"),
        ("none", 401, "nobody", None),
        ("none", 404, "acme", "acme"),
    ]
    assert lines[0]["request_id"] == "trace-me"
    assert lines[0]["ms"] > 0
    assert "secret" not in json.dumps(lines)


def test_whoever_leaves_or_stands_still_within_a_body_is_no_bug_of_ours(
    service: Service, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["/v1/classify", "/v2/models/one/infer", "/v2/repository/models/one/load", "/v1/classify/batch"]
    app = create_app(service.desk, MAX_BODY_BYTES, Gate(read_s=READ_S, logs_access=True))
    with listening(app, settings) as address:
        for path in paths:
            with dial(address) as connection:
                connection.sendall(head(target=f"POST {path}", length=50) + b"{")
        with dial(address) as connection:
            connection.sendall(head(target=f"POST {paths[-1]}", length=500) + json.dumps(BODY).encode() + b"\n{")
            raw = b""
            while not raw.endswith(b"0\r\n\r\n"):
                raw += connection.recv(65536)
        assert raw.index(b'"line":1') < raw.index(b'"line":0,"status":408,"code":"body_too_slow"')
        logged: list[str] = []

        def all_are_logged() -> bool:
            logged.extend(capsys.readouterr().err.splitlines())
            return len(logged) > len(paths)

        until(all_are_logged)
    logged += capsys.readouterr().err.splitlines()
    assert {json.loads(line)["event"] for line in logged} == {"request_answered"}


def test_there_is_no_access_log_unless_it_is_asked_for(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.post("/v1/classify", json=BODY)
    assert capsys.readouterr().err == ""


def test_a_bug_is_500_and_its_place_is_logged_but_not_what_it_says(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("secret text")

    monkeypatch.setattr(service.catalog, "all", fail)
    response = client.get("/v1/adapters", headers={"X-Request-Id": "trace-me"})
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    check_headers(response.headers)
    logged = capsys.readouterr().err
    event = json.loads(logged)
    assert (event["event"], event["error"], event["request_id"]) == ("request_crashed", "KeyError", "trace-me")
    assert "test_edges.py" in event["places"][-1]
    assert "secret" not in logged + response.text


def test_a_bug_in_a_line_of_a_batch_is_not_logged_with_what_it_says(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("secret text")

    monkeypatch.setattr(service.catalog, "resolve", fail)
    response = client.post("/v1/classify/batch", json=BODY)
    assert response.json()["code"] == "internal_error"
    logged = capsys.readouterr().err
    assert json.loads(logged)["event"] == "line_failed"
    assert "secret" not in logged + response.text


def test_nothing_secret_is_ever_written(
    adapters: Path, bert_base: BaseModel, client: TestClient, tmp_path: Path
) -> None:
    """A server with everything turned on is asked everything in every wrong way; then all it wrote is searched."""
    text, key, query, stranger = "word1 markertext", "operator-markerkey", "markerquery", "markerstranger"
    keys = write_keys(tmp_path / "keys.json", entry(key, "classify", "admin", "metrics"))
    arguments = ["--adapters", adapters, "--base", bert_base.folder, "--port", "0", "--dtype", "float32"]
    arguments += [
        "--state",
        tmp_path / "state",
        "--keys",
        keys,
        "--access-log",
        "true",
        "--max-body-bytes",
        "20000",
        "--threads",
        "1",
    ]
    log = tmp_path / "log"
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file, stdout=file) as process:
        until(lambda: '"server_started"' in log.read_text() or process.poll() is not None)
        [line] = [line for line in log.read_text().splitlines() if '"server_started"' in line]
        host, port = json.loads(line)["url"].removeprefix("http://").split(":")
        at = (host, int(port))
        asked = {
            "adapter_id": "one", "inputs": [text], "adapters": ["one"], "model": text, "source": "file:/nowhere",
            "tags": [text], "version": text,
        }  # fmt: skip
        bodies = [
            {"adapter_id": "one", "inputs": text},
            {"adapter_id": text, "inputs": text},
            {"adapter_id": "one", "inputs": text, text: text},
            {"adapter_id": "one", "inputs": [text] * 300},
            {"adapter_id": "one", "inputs": f"{text} \ud800"},
            {"adapter_id": "one", "inputs": f"{text} " * 600},
            asked,
        ]
        raws = [*(json.dumps(body).encode() for body in bodies), f'{{"{text}": '.encode(), text.encode() * 5000]
        for method, path in [*endpoints(client.app), ("GET", "/nothing")]:
            for raw in raws if method != "HEAD" else ():
                for given in (f"authorization: Bearer {key}", f"x-api-key: {stranger}"):
                    sent = f"{method} {re.sub('{.*}', 'one', path)}?q={query}"
                    exchange(at, head(given, target=sent, length=len(raw)) + raw)
        with dial(at) as connection:  # one leaves before it is answered
            connection.sendall(head(f"authorization: Bearer {key}", length=5000) + f'{{"inputs": "{text}'.encode())
        exchange(at, f"{text} {key}\r\n\r\n".encode())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    written = log.read_text()
    assert written.count("request_answered") > 50
    for marker in ("markertext", "markerkey", query, stranger):
        assert marker not in written
