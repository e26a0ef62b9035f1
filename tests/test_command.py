"""`adaptermux-serve` as a process of its own: start, answer, stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.base_model import BaseModel
from tests.seeded import make_adapter, peft_configs

LIMIT_S = 60


@pytest.fixture(scope="module")
def adapters(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    make_adapter(root / "one", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    make_adapter(root / "two", bert_base.folder, peft_configs("bert")["ia3-paper"], 4, seed=1)
    return root


@pytest.fixture
def server(adapters: Path, bert_base: BaseModel) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address, read from its own log."""
    arguments = ["--adapters", adapters, "--base", bert_base.folder, "--port", "0", "--dtype", "float32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    events = []
    for line in process.stderr:
        events.append(json.loads(line))
        if events[-1]["event"] == "server_started":
            break
    assert [event["event"] for event in events].count("adapter_loaded") == 2
    yield process, events[-1]["url"]
    process.kill()
    process.wait(LIMIT_S)
    process.stderr.close()


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
