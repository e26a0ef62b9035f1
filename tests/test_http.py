"""The HTTP side over a real engine: answers, errors and what they say."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.service import Service
from server.settings import Settings
from tests.seeded import make_adapter, peft_configs
from tests.test_adapter_folder import add_manifest

MAX_INPUTS = 8
MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="module")
def adapters(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    for seed, (name, config) in enumerate({"ticket-intents": "lora-qv", "film-reviews": "ia3-paper"}.items()):
        make_adapter(root / name, bert_base.folder, peft_configs("bert")[config], 3, seed=seed)
        add_manifest(root / name, bert_base, temperature=2.0, max_length=12)
    make_adapter(root / "foreign", bert_base.folder, peft_configs("bert")["lora-all"], 2, seed=9)
    make_adapter(root / "tags", bert_base.folder, peft_configs("bert")["lora-qv"], 4, seed=10)
    add_manifest(root / "tags", bert_base, problem_type="multi_label", threshold=0.45)
    make_adapter(root / "stars", bert_base.folder, peft_configs("bert")["head"], 1, seed=11)
    add_manifest(root / "stars", bert_base, problem_type="regression", labels=("stars",), temperature=2.0)
    shutil.copytree(root / "foreign", root / "cut")
    weights = root / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (root / "empty").mkdir()
    (root / "odd name").mkdir()
    os.mkdir(os.fsencode(root) + b"/\xff\xfe")
    shutil.copytree(root / "film-reviews", root / "odd-metrics")
    path = root / "odd-metrics" / "adapter.json"
    record = json.loads(path.read_text())
    metric = {"value": "n/a", "low": None, "high": 1, "num_rows": 3}
    path.write_text(json.dumps(record | {"training": {"metrics": {"test_accuracy": metric}}}))
    return root


@pytest.fixture(scope="module")
def service(adapters: Path, bert_base: BaseModel) -> Iterator[Service]:
    settings = Settings(
        adapters=adapters,
        base=str(bert_base.folder),
        device="cpu",
        dtype="float32",
        max_inputs=MAX_INPUTS,
        metrics_top_adapters=2,
        threads=1,
    )
    with Service(settings) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service.desk, MAX_BODY_BYTES), raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, **body: Any) -> tuple[int, dict[str, Any]]:
    response = client.post("/v1/classify", json=body)
    return response.status_code, response.json()


def test_one_text_is_answered_with_sorted_scores(client: TestClient) -> None:
    status, answer = post(client, adapter_id="film-reviews", inputs="word1 word2")
    assert status == 200
    assert answer["adapter_id"] == "film-reviews"
    assert answer["method"] == "ia3"
    assert answer["usage"] == {"tokens": 4}
    assert set(answer["timing_ms"]) == {"tokenize", "queue", "compute"}
    [prediction] = answer["predictions"]
    scores = [score["score"] for score in prediction["scores"]]
    assert scores == sorted(scores, reverse=True)
    assert math.isclose(sum(scores), 1)
    assert {"label": prediction["label"], "score": prediction["score"]} == prediction["scores"][0]


def test_inputs_of_every_shape_are_answered_in_order(client: TestClient) -> None:
    texts: list[Any] = ["word1", {"text": "word2"}, {"text": "word3", "text_pair": "word4 word5"}]
    _, together = post(client, adapter_id="ticket-intents", inputs=texts)
    for text, prediction in zip(texts, together["predictions"], strict=True):
        _, alone = post(client, adapter_id="ticket-intents", inputs=text)
        assert alone["predictions"][0]["label"] == prediction["label"]
        assert math.isclose(alone["predictions"][0]["score"], prediction["score"], abs_tol=1e-5)
    assert together["usage"] == {"tokens": 3 + 3 + 6}


def test_logits_equal_plain_peft_and_probabilities_follow_from_them(
    client: TestClient, bert_base: BaseModel, tmp_path: Path
) -> None:
    oracle = make_adapter(tmp_path / "again", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    tokens = [2, 5 + 7, 5 + 8, 3]  # [CLS] word7 word8 [SEP]
    expected = oracle(input_ids=torch.tensor([tokens])).logits[0]
    _, raw = post(client, adapter_id="ticket-intents", inputs="word7 word8", output="logits")
    by_label = {score["label"]: score["score"] for score in raw["predictions"][0]["scores"]}
    torch.testing.assert_close(
        torch.tensor([by_label[f"label{i}"] for i in range(3)]), expected.detach(), rtol=1e-5, atol=1e-5
    )
    _, soft = post(client, adapter_id="ticket-intents", inputs="word7 word8")
    by_label = {score["label"]: score["score"] for score in soft["predictions"][0]["scores"]}
    wanted = (expected.detach() / 2.0).softmax(0)
    torch.testing.assert_close(torch.tensor([by_label[f"label{i}"] for i in range(3)]), wanted, rtol=1e-5, atol=1e-5)


def test_a_multi_label_adapter_gives_independent_probabilities(client: TestClient) -> None:
    _, raw = post(client, adapter_id="tags", inputs="word7", output="logits")
    _, soft = post(client, adapter_id="tags", inputs="word7")
    for one, other in zip(raw["predictions"][0]["scores"], soft["predictions"][0]["scores"], strict=True):
        assert math.isclose(other["score"], 1 / (1 + math.exp(-one["score"])), abs_tol=1e-6)


@pytest.mark.parametrize("asked", [None, 0, 0.3, 0.7, 1])
@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_labels_are_those_at_or_above_the_threshold(client: TestClient, asked: float | None, output: str) -> None:
    _, soft = post(client, adapter_id="tags", inputs=["word7", "word8"])
    body = {"output": output, "top_k": 1} | ({} if asked is None else {"threshold": asked})
    _, answer = post(client, adapter_id="tags", inputs=["word7", "word8"], **body)
    for prediction, full in zip(answer["predictions"], soft["predictions"], strict=True):
        threshold = 0.45 if asked is None else asked
        assert prediction["labels"] == [one["label"] for one in full["scores"] if one["score"] >= threshold]
        assert prediction["label"] == full["label"]
    assert asked != 1 or answer["predictions"][0]["labels"] == []
    assert asked != 0 or len(answer["predictions"][0]["labels"]) == 4


def test_a_threshold_is_refused_by_adapters_that_have_none(client: TestClient) -> None:
    for name, kind in (("film-reviews", "single_label"), ("stars", "regression")):
        status, problem = post(client, adapter_id=name, inputs="word1", threshold=0.5)
        assert status == 422
        assert problem["errors"][0]["field"] == "threshold"
        assert kind in problem["detail"]
        _, answer = post(client, adapter_id=name, inputs="word1", threshold=None)
        assert "labels" not in answer["predictions"][0]


def test_a_number_is_the_score_of_its_only_label(client: TestClient) -> None:
    _, answer = post(client, adapter_id="stars", inputs="word1")
    _, raw = post(client, adapter_id="stars", inputs="word1", output="logits")
    assert answer["method"] == "head"
    [prediction] = answer["predictions"]
    assert prediction["label"] == "stars"
    assert prediction["scores"] == [{"label": "stars", "score": prediction["score"]}]
    assert prediction["score"] == raw["predictions"][0]["score"]


def test_the_list_tells_the_threshold_where_there_is_one(client: TestClient) -> None:
    assert client.get("/v1/adapters/tags").json()["threshold"] == 0.45
    assert client.get("/v1/adapters/stars").json()["threshold"] is None


def test_top_k_keeps_the_best(client: TestClient) -> None:
    _, answer = post(client, adapter_id="film-reviews", inputs="word1", top_k=2)
    assert len(answer["predictions"][0]["scores"]) == 2


def test_the_adapter_may_stand_in_the_path(client: TestClient) -> None:
    body = {"inputs": "word1 word2", "output": "logits"}
    answer = client.post("/v1/adapters/film-reviews/classify", json=body).json()
    _, other = post(client, adapter_id="film-reviews", **body)
    assert answer["predictions"] == other["predictions"]


def test_a_foreign_folder_is_served_with_numbered_labels(client: TestClient) -> None:
    status, answer = post(client, adapter_id="foreign", inputs="word1")
    assert status == 200
    assert {score["label"] for score in answer["predictions"][0]["scores"]} == {"LABEL_0", "LABEL_1"}


def test_an_unknown_adapter_is_404_and_names_near_ones(client: TestClient) -> None:
    status, problem = post(client, adapter_id="film-review", inputs="word1")
    assert status == 404
    assert problem["code"] == "adapter_not_found"
    assert "`film-reviews`" in problem["detail"]


@pytest.mark.parametrize("name", ["cut", "empty"])
def test_a_refused_adapter_is_409_with_the_reason_and_listed_as_failed(client: TestClient, name: str) -> None:
    status, problem = post(client, adapter_id=name, inputs="word1")
    assert status == 409
    listed = {entry["adapter_id"]: entry for entry in client.get("/v1/adapters").json()["adapters"]}
    assert listed[name]["status"] == "failed"
    assert listed[name]["refusal"]["reason"] in problem["detail"]
    assert listed["film-reviews"]["status"] == "ready"


@pytest.mark.parametrize(
    ("inputs", "field", "word"),
    [
        ("", "inputs", "empty"),
        ("  \n", "inputs", "empty"),
        ([], "inputs", "0 texts"),
        (["word1"] * 10_001, "inputs", "10001 texts"),
        ({"text": "word1", "\ud800": 1}, "inputs", "unknown field"),
        (["word1", ""], "inputs[1]", "empty"),
        (["word1", 5], "inputs[1]", "a number"),
        (["word1", None], "inputs[1]", "null"),
        ([["word1"]], "inputs[0]", "a list"),
        (True, "inputs", "a boolean"),
        ({"text": 7}, "inputs.text", "a number"),
        ({"text": "word1", "text_pair": 7}, "inputs.text_pair", "a number"),
        ({"text": "word1", "text_pair": ""}, "inputs.text_pair", "empty"),
        ({"txt": "word1"}, "inputs", "txt"),
        ([{"text_pair": "word1"}], "inputs[0].text", "missing"),
        (["word1"] * (MAX_INPUTS + 1), "inputs", str(MAX_INPUTS)),
        (["word1", "word1 " * 11], "inputs[1]", "takes 12"),
        ({"text": "word1 " * 6, "text_pair": "word1 " * 6}, "inputs.text", "takes 12"),
        ("\ud800", "inputs", "surrogate"),
    ],
)
def test_wrong_inputs_are_422_and_name_field_and_limit(client: TestClient, inputs: Any, field: str, word: str) -> None:
    raw = json.dumps({"adapter_id": "film-reviews", "inputs": inputs})
    response = client.post("/v1/classify", content=raw, headers={"content-type": "application/json"})
    problem = response.json()
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["errors"][0]["field"] == field
    assert word in problem["detail"]


def test_limits_hold_at_the_limit(client: TestClient) -> None:
    assert post(client, adapter_id="film-reviews", inputs=["word1"] * MAX_INPUTS)[0] == 200
    assert post(client, adapter_id="film-reviews", inputs="word1 " * 10)[0] == 200


def test_a_long_text_is_cut_only_when_asked(client: TestClient) -> None:
    _, cut = post(client, adapter_id="film-reviews", inputs="word1 " * 300, truncate=True, output="logits")
    _, whole = post(client, adapter_id="film-reviews", inputs="word1 " * 10, output="logits")
    assert cut["usage"] == {"tokens": 12}
    assert cut["predictions"] == whole["predictions"]


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": "2"}, "top_k"),
        ({"output": "percent"}, "output"),
        ({"truncate": "yes"}, "truncate"),
        ({"adapter_id": "tags", "threshold": -0.01}, "threshold"),
        ({"adapter_id": "tags", "threshold": 1.01}, "threshold"),
        ({"adapter_id": "tags", "threshold": "0.5"}, "threshold"),
        ({"adapter_id": "tags", "threshold": True}, "threshold"),
        ({"adapter": "x"}, "adapter"),
        ({"adapter_id": ""}, "adapter_id"),
        ({"adapter_id": 3}, "adapter_id"),
    ],
)
def test_wrong_fields_are_422_and_named(client: TestClient, extra: dict[str, Any], field: str) -> None:
    status, problem = post(client, **({"adapter_id": "film-reviews", "inputs": "word1"} | extra))
    assert status == 422
    assert [error["field"] for error in problem["errors"]] == [field]


TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["word1"]}
OUTPUT = {"name": "probabilities"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/classify/fanout", {"adapters": [0] * 30_000, "inputs": "word1"}, "adapters"),
        ("/v1/classify/fanout", {"adapters": [*["one"] * 9_999, 0], "inputs": "word1"}, "adapters[9999]"),
        ("/v1/classify", {"adapter_id": "one", "inputs": "word1"} | {f"x{n}": 1 for n in range(9_000)}, "x0"),
        ("/classify", {"model": "one", "input": ["word1", [1]] * 5_000}, "input"),
        ("/v2/models/one/infer", {"inputs": [TENSOR], "outputs": [0] * 30_000}, "outputs"),
        ("/v2/models/film-reviews/infer", {"inputs": [TENSOR], "outputs": [OUTPUT] * 3_000}, "outputs"),
        ("/v2/models/one/infer", {"inputs": [TENSOR | {"data": ["word1", ["word1"]] * 4_000}]}, "inputs[0].data"),
    ],
)
def test_the_answer_to_a_body_that_is_wrong_all_over_is_short(
    client: TestClient, path: str, body: dict[str, Any], field: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code in (400, 422)
    assert field in response.text
    assert len(response.content) < 4_000


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[1,", b'"'])
def test_a_body_that_is_no_json_is_a_problem(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_that_is_too_long_is_413(client: TestClient) -> None:
    fitting = {"adapter_id": "film-reviews", "inputs": "x" * (MAX_BODY_BYTES - 100)}
    assert client.post("/v1/classify", json=fitting).status_code == 200
    response = client.post("/v1/classify", json={"adapter_id": "film-reviews", "inputs": "x" * MAX_BODY_BYTES})
    assert response.status_code == 413
    assert response.json()["code"] == "body_too_large"
    assert str(MAX_BODY_BYTES) in response.json()["detail"]


def test_a_body_of_another_type_is_415(client: TestClient) -> None:
    response = client.post("/v1/classify", content=b"adapter_id=x", headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert "application/json" in response.json()["detail"]


def test_an_unknown_route_and_a_wrong_method_are_problems(client: TestClient) -> None:
    assert client.get("/v1/nothing").json()["code"] == "not_found"
    problem = client.get("/v1/classify").json()
    assert problem["code"] == "method_not_allowed"
    assert "takes POST, not GET" in problem["detail"]


def test_a_failing_forward_pass_is_500_and_the_next_request_is_answered(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise ValueError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(service.base.backbone.embeddings, "forward", fail)
        status, problem = post(client, adapter_id="film-reviews", inputs="word1")
        assert status == 500
        assert problem["code"] == "forward_failed"
    assert post(client, adapter_id="film-reviews", inputs="word1")[0] == 200
    assert client.get("/health/live").status_code == 200
    assert "out of luck" in capsys.readouterr().err


def test_a_request_whose_time_is_up_is_504_and_its_texts_are_dropped(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"adapter_id": "film-reviews", "inputs": ["word1", "word2"]}
    entered, leave = threading.Event(), threading.Event()
    embeddings: Any = service.base.backbone.embeddings
    embed = embeddings.forward

    def slow(**inputs: Any) -> Any:
        entered.set()
        assert leave.wait(10)
        return embed(**inputs)

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(embeddings, "forward", slow)
        busy = pool.submit(client.post, "/v1/classify", json=body)
        assert entered.wait(10)
        response = client.post("/v1/classify", json=body, headers={"X-Request-Timeout-Ms": "20"})
        assert response.status_code == 504
        assert response.json()["code"] == "deadline_exceeded"
        leave.set()
        assert busy.result(10).status_code == 200
    assert client.post("/v1/classify", json=body, headers={"X-Request-Timeout-Ms": "60000"}).status_code == 200


@pytest.mark.parametrize("value", ["0", "-5", "soon", "600001"])
def test_a_timeout_that_is_no_fit_number_is_422(client: TestClient, value: str) -> None:
    body = {"adapter_id": "film-reviews", "inputs": "word1"}
    response = client.post("/v1/classify", json=body, headers={"X-Request-Timeout-Ms": value})
    assert response.status_code == 422
    assert "X-Request-Timeout-Ms" in response.json()["errors"][0]["field"]


def test_many_clients_get_the_answers_of_their_own_adapters(client: TestClient) -> None:
    names = ["film-reviews", "ticket-intents", "foreign", "tags", "stars"]
    alone = {name: post(client, adapter_id=name, inputs="word9", output="logits")[1]["predictions"] for name in names}

    def ask(name: str) -> tuple[str, list[Any]]:
        return name, post(client, adapter_id=name, inputs="word9", output="logits")[1]["predictions"]

    with ThreadPoolExecutor(16) as pool:
        for name, [prediction] in pool.map(ask, names * 20):
            for one, other in zip(prediction["scores"], alone[name][0]["scores"], strict=True):
                assert one["label"] == other["label"]
                assert math.isclose(one["score"], other["score"], abs_tol=1e-5)


def test_health_base_and_metrics_are_served(client: TestClient, bert_base: BaseModel) -> None:
    assert client.get("/health/live").json()["status"] == "ok"
    assert client.get("/health/ready").json()["status"] == "ok"
    assert client.get("/health/startup").json()["status"] == "ok"
    assert client.get("/v1/base").json()["fingerprint"] == bert_base.fingerprint
    assert client.get("/v1/adapters/film-reviews").json()["labels"] == ["label0", "label1", "label2"]
    text = client.get("/metrics").text
    assert 'adaptermux_adapters{status="failed"} 4.0' in text
    assert 'adaptermux_adapters{status="ready"} 6.0' in text


def test_odd_folders_do_not_spoil_the_list(client: TestClient) -> None:
    response = client.get("/v1/adapters")
    assert response.status_code == 200
    status = {entry["adapter_id"]: entry["status"] for entry in response.json()["adapters"]}
    assert status["odd-metrics"] == "ready"
    assert status["odd name"] == "failed"
    assert status["\\udcff\\udcfe"] == "failed"


def test_metric_labels_by_adapter_are_capped(client: TestClient) -> None:
    for name in ("film-reviews", "ticket-intents", "foreign", "tags", "nobody"):
        post(client, adapter_id=name, inputs="word1")
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("adaptermux_requests_total")]
    named = {line.split('adapter="')[1].split('"')[0] for line in lines}
    assert len(named - {"other"}) == 2
    assert "other" in named


def test_the_docs_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "swagger" in page.lower()
    assert "https://" not in page


def test_a_dead_engine_fails_health_and_answers_503(adapters: Path, bert_base: BaseModel) -> None:
    settings = Settings(adapters=adapters, base=str(bert_base.folder), device="cpu", dtype="float32", threads=1)
    with Service(settings) as service, TestClient(create_app(service.desk, MAX_BODY_BYTES)) as client:
        service.engine.close()
        assert client.get("/health/live").status_code == 503
        response = client.post("/v1/classify", json={"adapter_id": "film-reviews", "inputs": "word1"})
        assert response.status_code == 503
        assert response.json()["code"] == "engine_stopped"
        assert int(response.headers["retry-after"]) >= 1


def test_a_full_queue_is_503_with_retry_after(adapters: Path, bert_base: BaseModel) -> None:
    settings = Settings(
        adapters=adapters, base=str(bert_base.folder), device="cpu", dtype="float32", threads=1, max_waiting=2
    )
    service = Service(settings)
    with TestClient(create_app(service.desk, MAX_BODY_BYTES)) as client:
        response = client.post("/v1/classify", json={"adapter_id": "film-reviews", "inputs": ["word1"] * 3})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["code"] == "overloaded"
