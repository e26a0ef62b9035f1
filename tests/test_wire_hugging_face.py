"""Hugging Face's own client against our route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError

from server.base_model import BaseModel
from tests.wired import MAX_INPUTS, Wired, make_adapters, seeing, wired


@pytest.fixture(scope="module")
def server(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    root = tmp_path_factory.mktemp("served")
    make_adapters(root, bert_base)
    with wired(root, bert_base) as server:
        yield server


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client refuses even loopback where the hub is switched off."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def client(server: Wired, adapter_id: str) -> InferenceClient:
    return InferenceClient(base_url=f"{server.url}/models/{adapter_id}")


def test_the_client_gets_every_label_from_high_to_low(server: Wired) -> None:
    found = client(server, "reviews").text_classification("word1 word2")
    [native] = server.native("reviews", "word1 word2")
    assert [(one.label, one.score) for one in found] == list(native.items())
    assert len(found) == 3


def test_the_client_gets_the_version_it_names(server: Wired) -> None:
    found = client(server, f"reviews@{server.version('reviews')}").text_classification("word1")
    [native] = server.native("reviews", "word1")
    assert {one.label: one.score for one in found} == native


def test_top_k_keeps_the_best(server: Wired) -> None:
    found = client(server, "reviews").text_classification("word1", top_k=2)
    assert [one.label for one in found] == list(server.native("reviews", "word1")[0])[:2]


@pytest.mark.parametrize("adapter_id", ["reviews", "tags", "stars"])
def test_the_function_that_is_asked_for_is_applied(server: Wired, adapter_id: str) -> None:
    [raw] = server.native(adapter_id, "word7", output="logits")
    [own] = server.native(adapter_id, "word7")
    asked: dict[str, dict[str, float]] = {}
    for function in ("none", "softmax", "sigmoid"):
        found = client(server, adapter_id).text_classification("word7", function_to_apply=function)
        asked[function] = {one.label: one.score for one in found}
    assert asked["none"] == raw
    assert sum(asked["softmax"].values()) == pytest.approx(1)
    assert all(0 < score < 1 for score in asked["sigmoid"].values())
    assert asked[{"reviews": "softmax", "tags": "sigmoid", "stars": "none"}[adapter_id]] == own


def test_lists_and_pairs_are_answered_in_order(server: Wired) -> None:
    inputs: list[Any] = ["word1", {"text": "word2", "text_pair": "word3"}]
    response = server.post("/models/intents", {"inputs": inputs, "options": {"use_cache": False}})
    assert response.status_code == 200
    found = [{one["label"]: one["score"] for one in each} for each in response.json()]
    for one, native in zip(found, server.native("intents", inputs), strict=True):
        assert one == pytest.approx(native, abs=1e-6)


def test_a_long_text_is_cut_only_when_asked(server: Wired) -> None:
    body: dict[str, Any] = {"inputs": "word1 " * 50}
    response = server.post("/models/reviews", body)
    assert response.status_code == 422
    assert "takes 12" in response.json()["error"]
    assert server.post("/models/reviews", body | {"parameters": {"truncation": True}}).status_code == 200


def test_the_client_is_told_what_is_wrong(server: Wired) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        client(server, "review").text_classification("word1")
    assert caught.value.response.status_code == 404
    assert "did you mean `reviews`" in str(caught.value)


@pytest.mark.parametrize(
    ("adapter_id", "body", "status", "word"),
    [
        ("nothing-like-it", {"inputs": "word1"}, 404, "nothing-like-it"),
        ("cut", {"inputs": "word1"}, 409, "refused"),
        ("reviews", {"inputs": ""}, 422, "empty"),
        ("reviews", {}, 422, "`inputs`"),
        ("reviews", {"inputs": ["word1"] * (MAX_INPUTS + 1)}, 422, str(MAX_INPUTS)),
        ("reviews", {"inputs": "word1", "parameters": {"top_k": 0}}, 422, "`parameters.top_k`"),
        ("reviews", {"inputs": "word1", "parameters": {"function_to_apply": "tanh"}}, 422, "function_to_apply"),
        ("reviews", {"inputs": "word1", "parameters": {"candidate_labels": ["a"]}}, 422, "candidate_labels"),
        ("reviews", {"inputs": "x" * 100_000}, 413, "100000"),
    ],
)
def test_errors_have_the_shape_of_hugging_face(
    server: Wired, adapter_id: str, body: dict[str, Any], status: int, word: str
) -> None:
    response = server.post(f"/models/{adapter_id}", body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert word in response.json()["error"]


def test_what_a_caller_may_not_see_is_answered_as_unknown(server: Wired) -> None:
    with seeing(server, "reviews"):
        hidden = server.post("/models/stars", {"inputs": "word1"})
        unknown = server.post("/models/staru", {"inputs": "word1"})
    assert hidden.status_code == unknown.status_code == 404
    assert hidden.json()["error"].replace("stars", "staru") == unknown.json()["error"]
