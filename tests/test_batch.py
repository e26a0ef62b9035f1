"""Streams of lines: answered in order, while they are sent, each on its own."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, MutableMapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.jobs import Answer, Job
from server.routes import batch
from server.service import Service
from tests.seeded import make_adapter, peft_configs
from tests.serving import LIMIT_S, listening, settings_for, until

MAX_BODY_BYTES = 10_000


@pytest.fixture(scope="module")
def service(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("one", "two")):
        make_adapter(root / name, bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=seed)
    with Service(settings_for(root, bert_base)) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service.desk, MAX_BODY_BYTES)) as client:
        yield client


@pytest.fixture(scope="module")
def url(service: Service, bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = settings_for(tmp_path_factory.mktemp("unused"), bert_base)
    with listening(create_app(service.desk, MAX_BODY_BYTES), settings) as (host, port):
        yield f"http://{host}:{port}"


def line(number: int, **more: Any) -> bytes:
    body = {"adapter_id": ("one", "two")[number % 2], "inputs": f"word{number % 90}", "id": number} | more
    return json.dumps(body).encode() + b"\n"


def answers(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(one) for one in content.splitlines()]


def test_lines_are_answered_in_order_and_as_single_requests_are(client: TestClient) -> None:
    response = client.post(batch.PATH, content=b"".join(line(number) for number in range(2000)))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    found = answers(response.content)
    assert [one["id"] for one in found] == list(range(2000))
    assert [one["line"] for one in found] == list(range(1, 2001))
    for number in (0, 1, 57):
        alone = client.post("/v1/classify", json={"adapter_id": ("one", "two")[number % 2], "inputs": f"word{number}"})
        assert found[number]["version"] == alone.json()["version"]
        [mine], [its] = found[number]["predictions"], alone.json()["predictions"]
        assert mine["label"] == its["label"]
        assert mine["score"] == pytest.approx(its["score"], abs=1e-5)


def test_a_body_may_be_longer_than_a_single_request_may(client: TestClient) -> None:
    content = b"".join(line(number) for number in range(300))
    assert len(content) > MAX_BODY_BYTES
    assert len(answers(client.post(batch.PATH, content=content).content)) == 300


def test_a_line_that_fails_stops_no_other(client: TestClient) -> None:
    long = json.dumps({"adapter_id": "one", "inputs": "x" * batch.MAX_LINE_BYTES}).encode()
    content = b"\n".join(
        [line(0).strip(), b"{", b"", line(3, adapter_id="three").strip(), line(4, inputs=["word1"] * 9).strip(), long,
         line(6, inputs="").strip(), b"7", line(7, top_k=0).strip(), b"\xff", line(9).strip()]
    )  # fmt: skip
    found = {one["line"]: one for one in answers(client.post(batch.PATH, content=content).content)}
    assert sorted(found) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    codes = {number: one.get("code") for number, one in found.items()}
    assert codes == {
        1: None, 2: "invalid_json", 4: "adapter_not_found", 5: "too_many_inputs", 6: "body_too_large",
        7: "invalid_input", 8: "invalid_input", 9: "invalid_input", 10: "invalid_json", 11: None,
    }  # fmt: skip
    assert found[4]["id"] == 3
    assert "top_k" in found[9]["detail"]


def test_a_bug_in_one_line_is_told_and_logged_without_what_it_says(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("secret text")

    monkeypatch.setattr(service.catalog, "resolve", fail)
    response = client.post("/v1/classify/batch", content=line(1))
    assert answers(response.content)[0]["code"] == "internal_error"
    logged = capsys.readouterr().err
    assert "test_batch.py" in json.loads(logged)["places"][-1]
    assert "secret" not in logged + response.text


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=LIMIT_S)
    head = f"POST {batch.PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def received(connection: socket.socket, marker: bytes) -> bytes:
    content = b""
    while marker not in content:
        more = connection.recv(65536)
        assert more, content
        content += more
    return content


def test_answers_come_while_the_body_is_still_sent(url: str) -> None:
    with connect(url) as connection:
        for number in range(5):
            connection.sendall(chunk(line(number)))
            assert b'"predictions"' in received(connection, f'"id":{number}}}'.encode())
        connection.sendall(chunk(b""))
        received(connection, b"0\r\n\r\n")


def test_the_lines_of_a_client_that_leaves_are_dropped(url: str, service: Service) -> None:
    with connect(url) as connection:
        for number in range(200):
            connection.sendall(chunk(line(number, inputs=["word1 " * 50] * 8, truncate=True)))
    until(lambda: service.engine.health().num_waiting == 0)


def test_a_stream_that_is_cut_off_leaves_no_line_running(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Future[Answer]] = []
    submit, here = service.engine.submit, threading.get_ident()

    def never_answered(job: Job) -> Future[Answer]:
        if threading.get_ident() != here:
            return submit(job)  # a line of a client that has just left
        asked.append(Future())
        return asked[-1]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": line(0) * 200, "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    async def cut_off() -> None:
        address = {"method": "POST", "path": batch.PATH, "raw_path": batch.PATH.encode(), "query_string": b""}
        scope = {"type": "http", "http_version": "1.1", "scheme": "http", "headers": [], "state": {}, **address}
        answering = asyncio.ensure_future(create_app(service.desk, MAX_BODY_BYTES)(scope, receive, send))
        async with asyncio.timeout(LIMIT_S):
            while len(asked) < batch.LINES_IN_FLIGHT + 2:  # one is being written, and one waits for room
                await asyncio.sleep(0)
            answering.cancel()
            await asyncio.wait([answering])
            while not all(answer.cancelled() for answer in asked):
                await asyncio.sleep(0)

    monkeypatch.setattr(service.engine, "submit", never_answered)
    asyncio.run(cut_off())


def test_a_client_that_only_sends_is_told_where_it_was_cut_off(
    url: str, client: TestClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "PATIENCE_S", 1.0)
    with connect(url) as connection:
        content = chunk(line(0) + line(1, adapter_id="x" * 100, id="y" * 256) * 200)
        while "batch_stalled" not in capfd.readouterr().err:
            connection.sendall(content)
        connection.sendall(chunk(b""))
        found = received(connection, b"read while you send")
    assert b'"line":1,' in found
    assert b'"code":"overloaded"' in found
    assert client.post("/v1/classify", json={"adapter_id": "one", "inputs": "word1"}).status_code == 200
