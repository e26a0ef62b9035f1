"""`adaptermux-serve` as a process of its own: start, answer, stop."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from server.base_model import BaseModel
from tests.seeded import make_adapter, peft_configs

LIMIT_S = 60
PATIENT = ("--port", "0", "--dtype", "float32", "--max-wait-s", "600", "--drain-s", "60")
"""On a busy machine texts may wait long, and none of these tests is about that."""
REQUESTS = 'adaptermux_requests_total{adapter="topics",code="ok"}'


@pytest.fixture(scope="module")
def adapters(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    make_adapter(root / "one", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    make_adapter(root / "two", bert_base.folder, peft_configs("bert")["ia3-paper"], 4, seed=1)
    return root


@contextmanager
def running(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, Any]]]]:
    """A server that has started, and what it logged until then; it is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *PATIENT, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    events = []
    for line in process.stderr:
        events.append(json.loads(line))
        if events[-1]["event"] == "server_started":
            break
    try:
        yield process, events
    finally:
        process.kill()
        process.wait(LIMIT_S)
        process.stderr.close()


@pytest.fixture
def server(adapters: Path, bert_base: BaseModel) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address, read from its own log."""
    with running("--adapters", adapters, "--base", bert_base.folder) as (process, events):
        assert [event["num_adapters"] for event in events if event["event"] == "adapters_loaded"] == [2]
        yield process, events[-1]["url"]


def test_it_answers_and_sigterm_ends_it_with_0(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    for adapter_id in ("one", "two"):
        body = json.dumps({"adapter_id": adapter_id, "inputs": ["word1", "word2 word3"]}).encode()
        request = urllib.request.Request(f"{url}/v1/classify", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            assert len(json.load(response)["predictions"]) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0
    assert process.stderr is not None
    assert json.loads(process.stderr.readlines()[-1])["event"] == "server_stopped"


def test_sigterm_at_the_moment_of_the_start_is_not_lost(server: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = server
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0
    assert process.stderr is not None
    assert json.loads(process.stderr.readlines()[-1])["event"] == "server_stopped"


def test_sigterm_under_load_loses_no_request_that_is_in_flight(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    texts = [" ".join(["word1"] * 300)] * 100

    def ask(adapter_id: str) -> int:
        body = json.dumps({"adapter_id": adapter_id, "inputs": texts}).encode()
        request = urllib.request.Request(f"{url}/v1/classify", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            return len(json.load(response)["predictions"])

    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(ask, ("one", "two")[index % 2]) for index in range(3)]
        _until(lambda: _metric(url, "adaptermux_waiting_texts") > 2 * len(texts))  # the last one has come
        process.send_signal(signal.SIGTERM)
        assert [answer.result(LIMIT_S) for answer in answers] == [len(texts)] * 3
    assert process.wait(LIMIT_S) == 0


def test_the_texts_of_a_client_that_leaves_are_dropped(server: tuple[subprocess.Popen[str], str]) -> None:
    """The first batch runs; what waits behind it is never computed, and the request is counted."""
    _, url = server
    texts = [" ".join(["word1"] * 500)] * 250
    body = json.dumps({"adapter_id": "one", "inputs": texts}).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        _until(lambda: _metric(url, "adaptermux_batch_seconds_count") + _metric(url, "adaptermux_waiting_texts") > 0)
    _until(lambda: _metric(url, 'adaptermux_requests_total{adapter="one",code="client_left"}') == 1)
    _until(lambda: _metric(url, "adaptermux_waiting_texts") == 0)
    assert _metric(url, "adaptermux_batch_texts_sum") < len(texts)


def test_a_server_that_is_killed_finds_its_versions_and_aliases_again(
    adapters: Path, bert_base: BaseModel, tmp_path: Path
) -> None:
    """Killed while texts are classified and other versions are put and deleted, wherever that is just then."""
    (tmp_path / "served").mkdir()
    arguments = ["--adapters", tmp_path / "served", "--base", bert_base.folder, "--source-root", adapters]
    before: dict[str, Any] = {}
    for number in range(3):
        with running(*arguments) as (process, events), ThreadPoolExecutor(3) as clients:
            url = events[-1]["url"]
            if not before:
                versions = [
                    _send(url, "PUT", "/v1/adapters/topics", {"source": f"file:{adapters / name}"})["version"]
                    for name in ("one", "two")
                ]
                shares = [{"version": version, "weight": 1 + index} for index, version in enumerate(versions)]
                before = _send(url, "PUT", "/v1/adapters/topics/alias", {"versions": shares})
            assert _lasting(_send(url, "GET", "/v1/adapters/topics")) == _lasting(before)
            for share in before["alias"]:
                body = {"adapter_id": f"topics@{share['version']}", "inputs": "word1"}
                assert _send(url, "POST", "/v1/classify", body)["version"] == share["version"]

            def change(name: str, url: str = url) -> None:
                with suppress(OSError, http.client.HTTPException):
                    while True:
                        _send(url, "PUT", f"/v1/adapters/{name}", {"source": f"file:{adapters / name}"})
                        _send(url, "POST", "/v1/classify", {"adapter_id": "topics", "inputs": "word1"})
                        _send(url, "DELETE", f"/v1/adapters/{name}")

            changing = [clients.submit(change, name) for name in ("one", "two")]
            _until(lambda url=url, most=10 + 7 * number: _metric(url, REQUESTS) > most)  # type: ignore[misc]
            process.kill()
            assert [one.result(LIMIT_S) for one in changing] == [None, None]
        ledger = json.loads((tmp_path / "served" / ".adaptermux" / "ledger.json").read_text())["adapters"]
        for adapter_id, kept in ledger.items():
            for version in kept["versions"]:
                place = tmp_path / "served" / ".adaptermux" / "versions" / adapter_id / version
                assert (place / "adapter_model.safetensors").exists()


def _lasting(entry: dict[str, Any]) -> dict[str, Any]:
    """Of an adapter's entry, all but where its versions are in memory just now."""
    return entry | {"versions": [{**version, "tier": None} for version in entry["versions"]]}


def _send(url: str, method: str, path: str, body: object = None) -> dict[str, Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        answer: dict[str, Any] = json.loads(response.read() or b"{}")
    return answer


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=LIMIT_S) as response:
        lines = response.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--adapters", "nowhere"], 2, "nowhere"),
        (["--adapters", ".", "--port", "x"], 2, "--port"),
        (["--adapters", ".", "--base", "./nowhere"], 1, "nowhere"),
        (["--adapters", ".", "--device", "warp"], 1, "warp"),
        ([], 2, "--adapters"),
    ],
)
def test_mistakes_end_the_start_with_one_sentence(arguments: list[str], code: int, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == code
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_ends_the_start(adapters: Path, bert_base: BaseModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["--adapters", str(adapters), "--base", str(bert_base.folder), "--port", port]
        done = subprocess.run(
            [sys.executable, "-m", "server", *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    assert done.returncode == 1
    assert "in use" in done.stderr


def test_the_demo_prints_a_table_and_ends_with_0(adapters: Path, bert_base: BaseModel, tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "".join(f"word{i} word{i + 1},LABEL_0\n" for i in range(10)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "server.demo", "--adapters", str(adapters), "--base", str(bert_base.folder)]
    asked = ["--ask", f"one={texts}", "--ask", f"two={texts}", "--port", port, "--once"]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith(("one ", "two ")) and "LABEL_" in line for line in done.stdout.splitlines()) == 12
    failing = [*command, "--ask", f"three={texts}", "--port", port, "--once"]
    done = subprocess.run(failing, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "404" in done.stderr
