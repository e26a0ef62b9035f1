"""The servers that load tests compare ours with: processes of their own, asked over loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from benchmarks.peers import infinity
from benchmarks.peers.__main__ import Turn, summary
from benchmarks.peers.contenders import started_peer
from benchmarks.peers.set_adapter import Classifier
from benchmarks.peers.wire import Infinity
from decision.rows import LatencyRow
from loadtest.errors import LoadTestError
from loadtest.workload import Ask
from server.app import create_app
from server.base_model import BaseModel
from server.gate import open_gate
from server.service import Service
from tests.measured import PROVENANCE
from tests.seeded import make_adapter, peft_configs
from tests.serving import settings_for
from tests.test_adapter_folder import add_manifest

LIMIT_S = 120
CONFIGS = {
    "lora": "lora-qv",
    "ia3": "ia3-paper",
    "prefix": "prefix",
    "bottleneck": "bottleneck-houlsby",
    "head": "head",
}


@pytest.fixture(scope="module")
def adapters(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of every method."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (method, config) in enumerate(CONFIGS.items()):
        for name in (f"{method}-0", f"{method}-1"):
            make_adapter(root / name, bert_base.folder, peft_configs("bert")[config], 3, seed=10 * seed + int(name[-1]))
    add_manifest(root / "lora-1", bert_base, labels=("topic", "place", "time"), temperature=0.5)
    return root


@pytest.fixture(scope="module")
def ours(adapters: Path, bert_base: BaseModel) -> Iterator[TestClient]:
    settings = settings_for(adapters, bert_base)
    with Service(settings) as service, open_gate(settings) as gate:
        yield TestClient(create_app(service.desk, settings.max_body_bytes, gate))


@contextmanager
def running(peer: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A peer that has started, and its address; it is killed in the end."""
    command = [sys.executable, "-m", f"benchmarks.peers.{peer}", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            event = json.loads(process.stderr.readline())
            assert event["event"] == "server_started"
            yield process, event["url"]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def theirs(adapters: Path, bert_base: BaseModel) -> Iterator[str]:
    with running("set_adapter", "--adapters", adapters, "--base", bert_base.folder, "--threads", 1) as (_, url):
        yield url


def ask(url: str, **body: object) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def scores(prediction: dict[str, Any]) -> dict[str, float]:
    assert prediction["label"] == prediction["scores"][0]["label"]
    return {one["label"]: one["score"] for one in prediction["scores"]}


@pytest.mark.parametrize("method", CONFIGS)
def test_set_adapter_answers_as_we_do_whichever_was_asked_before(method: str, ours: TestClient, theirs: str) -> None:
    answers = []
    for name in (f"{method}-0", f"{method}-1", f"{method}-0"):
        body = {"adapter_id": name, "inputs": ["word1 word2 word3", "word4 " * 40, "word5"]}
        expected, found = ours.post("/v1/classify", json=body).json(), ask(f"{theirs}/v1/classify", **body)
        assert (found["adapter_id"], found["method"]) == (name, method) == (expected["adapter_id"], expected["method"])
        for one, other in zip(found["predictions"], expected["predictions"], strict=True):
            assert scores(one) == pytest.approx(scores(other), abs=1e-4)
        answers.append(list(scores(found["predictions"][0]).values()))
    assert answers[0] == pytest.approx(answers[2], abs=1e-6)
    assert answers[0] != pytest.approx(answers[1], abs=1e-3)


def test_set_adapter_takes_one_text_and_says_when_it_is_ready(theirs: str) -> None:
    assert len(ask(f"{theirs}/v1/classify", adapter_id="lora-0", inputs="word1")["predictions"]) == 1
    with urllib.request.urlopen(f"{theirs}/health/ready", timeout=LIMIT_S) as response:
        assert response.status == 200


def test_set_adapter_answers_404_for_an_adapter_that_is_not_there(theirs: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        ask(f"{theirs}/v1/classify", adapter_id="nobody", inputs="word1")
    caught.value.close()


def test_the_models_of_set_adapter_share_the_tensors_of_one_base(adapters: Path, bert_base: BaseModel) -> None:
    classifier = Classifier(adapters, str(bert_base.folder), torch.bfloat16)
    addresses = set()
    for model in classifier.models.values():
        held = {name.replace("base_layer.", ""): tensor for name, tensor in model.get_base_model().named_parameters()}
        for name in ("bert.embeddings.word_embeddings", "bert.encoder.layer.1.attention.self.query"):
            assert held[f"{name}.weight"].dtype == torch.bfloat16
            addresses.add(held[f"{name}.weight"].data_ptr())
    assert set(classifier.models) == set(CONFIGS)
    assert len(addresses) == 2


def test_sigterm_ends_set_adapter(adapters: Path, bert_base: BaseModel) -> None:
    with running("set_adapter", "--adapters", adapters, "--base", bert_base.folder) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


def test_without_infinity_it_says_how_to_install_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.peers.infinity", "--environment", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "`make peers`" in done.stderr


@pytest.mark.skipif(not infinity.is_installed(), reason="infinity is not installed (`make peers`)")
def test_infinity_classifies_with_the_base_and_sigterm_ends_it() -> None:
    with running("infinity", "--threads", 1, "--dtype", "bfloat16") as (process, url):
        answer = ask(f"{url}/classify", model=infinity.MODEL_ID, input=["one text", "another"])
        assert [len(found) for found in answer["data"]] == [infinity.NUM_LABELS] * 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        with pytest.raises(urllib.error.URLError):
            ask(f"{url}/classify", model=infinity.MODEL_ID, input=["one text"])


def test_a_peer_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(LoadTestError, match="holds no adapters"),
        started_peer("set_adapter", "--adapters", str(tmp_path)),
    ):
        pass


def turns(service: str, case: str, *figures: tuple[float, float]) -> dict[str, list[Turn]]:
    """What was measured of a contender: requests a second and processor time of one, by round."""
    facts = {
        "scenario": "peers", "case": case, "target": service, "base": "b", "dtype": "float32", "device": "cpu",
        "methods": {}, "has_random_weights": True, "num_registered": 1, "num_hot": 1, "workload": {},
        "duration_s": 1.0, "num_requests": 10, "num_errors": 0, "latency_ms": None, "provenance": PROVENANCE,
    }  # fmt: skip
    rows = [LatencyRow(**facts, throughput_per_s=speed, texts_per_s=speed) for speed, _ in figures]
    return {f"{service}, {case}": [Turn(row, cpu_ms) for row, (_, cpu_ms) in zip(rows, figures, strict=True)]}


def test_ratios_are_of_one_round_and_against_the_faster_of_a_peers_settings() -> None:
    found = summary(
        turns("adaptermux", "mix", (100, 2), (50, 2), (90, 2))
        | turns("adaptermux", "mix, HTTP process", (200, 2), (200, 2), (200, 2))
        | turns("adaptermux", "base", (100, 2), (100, 2), (100, 2))
        | turns("infinity", "threads 1", (50, 4), (50, 4), (30, 3))
        | turns("infinity", "default threads", (40, 9), (40, 9), (80, 9))
    )
    assert found["compared_with"]["infinity"] == "infinity, threads 1"
    assert found["requests_per_s_ratios"]["mix"]["infinity"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert found["cpu_ratios"]["mix"]["infinity"] == {"median": 2.0, "low": 1.5, "high": 2.0}
    assert found["requests_per_s_ratios"]["mix"]["base"]["median"] == 0.9
    assert found["requests_per_s_ratios"]["mix, HTTP process"]["infinity"]["median"] == 4.0


RIGHT = {"model": "base", "data": [[{"label": "LABEL_0", "score": 0.9}, {"label": "LABEL_1", "score": 0.1}]]}


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (200, RIGHT, None),
        (429, {"error": {"message": "busy"}}, "429"),
        (200, RIGHT | {"model": "another"}, "wrong answer"),
        (200, RIGHT | {"data": []}, "wrong answer"),
        (200, {"data": None}, "wrong answer"),
        (200, RIGHT | {"data": [[]]}, "wrong answer"),
        (200, [], "wrong answer"),
    ],
)
def test_an_answer_of_infinity_is_right_only_if_it_holds_scores_for_every_text(
    status: int, answer: object, error: str | None
) -> None:
    wire, asked = Infinity(), Ask(0, ("one text",))
    assert json.loads(wire.body("base", asked)) == {"model": "base", "input": ["one text"]}
    assert wire.read("base", asked, status, json.dumps(answer).encode(), None).error == error
