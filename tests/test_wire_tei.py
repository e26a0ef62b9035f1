"""The shapes of text-embeddings-inference's `/predict` and `/info`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from server.base_model import BaseModel
from tests.wired import MAX_INPUTS, MAX_TOKENS, Wired, make_adapters, seeing, wired

REVIEWS = {"X-Adapter-Id": "reviews"}


@pytest.fixture(scope="module")
def server(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    root = tmp_path_factory.mktemp("served")
    make_adapters(root, bert_base)
    with wired(root, bert_base) as server:
        yield server


def scores(prediction: list[dict[str, Any]]) -> dict[str, float]:
    assert all(set(one) == {"label", "score"} for one in prediction)
    return {one["label"]: one["score"] for one in prediction}


@pytest.mark.parametrize(
    ("inputs", "native"),
    [
        ("word1 word2", "word1 word2"),
        (["word1"], "word1"),
        (["word1", "word2 word3"], {"text": "word1", "text_pair": "word2 word3"}),
    ],
)
def test_a_text_or_one_pair_is_answered_with_one_flat_list(server: Wired, inputs: Any, native: Any) -> None:
    response = server.post("/predict", {"inputs": inputs}, REVIEWS)
    assert response.status_code == 200
    found = scores(response.json())
    [expected] = server.native("reviews", native)
    assert list(found.items()) == list(expected.items())


def test_a_batch_of_texts_and_pairs_is_answered_with_a_list_each(server: Wired) -> None:
    response = server.post("/tei/intents/predict", {"inputs": [["word1"], ["word2", "word3"]]})
    expected = server.native("intents", ["word1", {"text": "word2", "text_pair": "word3"}])
    for one, other in zip(response.json(), expected, strict=True):
        assert scores(one) == pytest.approx(other, abs=1e-6)
    one_of_one = server.post("/tei/intents/predict", {"inputs": [["word1"]]}).json()
    assert scores(one_of_one[0]) == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("adapter_id", ["reviews", "tags", "stars"])
def test_raw_scores_are_logits_and_others_come_from_the_adapters_own_activation(server: Wired, adapter_id: str) -> None:
    body = {"inputs": "word7"}
    raw = server.post(f"/tei/{adapter_id}/predict", body | {"raw_scores": True}).json()
    assert scores(raw) == server.native(adapter_id, "word7", output="logits")[0]
    assert scores(server.post(f"/tei/{adapter_id}/predict", body).json()) == server.native(adapter_id, "word7")[0]


def test_a_long_text_is_cut_at_the_end_that_is_named(server: Wired) -> None:
    words = [f"word{index}" for index in range(30)]
    body = {"inputs": " ".join(words)}
    refused = server.post("/predict", body, REVIEWS)
    assert refused.status_code == 422
    assert refused.json()["error_type"] == "validation"
    room = MAX_TOKENS - 2
    for direction, kept in (("Right", words[:room]), ("left", words[-room:])):
        cut = server.post("/predict", body | {"truncate": True, "truncation_direction": direction}, REVIEWS)
        assert scores(cut.json()) == server.native("reviews", " ".join(kept))[0]
        assert cut.headers["x-compute-tokens"] == str(MAX_TOKENS)


def test_the_adapter_may_be_left_out_where_there_is_one(server: Wired) -> None:
    with seeing(server, "tags", "cut"):  # of which one can be served
        assert (
            server.post("/predict", {"inputs": "word1"}).json()
            == server.post("/tei/tags/predict", {"inputs": "word1"}).json()
        )
        assert server.get("/info").json()["model_id"] == "tags"
    with seeing(server, "no-such-name"):
        assert "there are 0 adapters" in server.post("/predict", {"inputs": "word1"}).json()["error"]
    for response in (server.post("/predict", {"inputs": "word1"}), server.get("/info")):
        assert response.status_code == 422
        assert "there are 4 adapters" in response.json()["error"]
        assert "X-Adapter-Id" in response.json()["error"]


@pytest.mark.parametrize("path", ["/info", "/tei/reviews/info"])
def test_info_tells_the_labels_and_limits_of_the_adapter(server: Wired, path: str) -> None:
    info = server.get(path, REVIEWS).json()
    assert info["model_id"] == info["served_model_name"] == "reviews"
    assert info["model_sha"] == server.version("reviews")
    assert info["model_dtype"] == "float32"
    classifier = info["model_type"]["classifier"]
    assert classifier["id2label"] == {"0": "label0", "1": "label1", "2": "label2"}
    assert classifier["label2id"] == {"label0": 0, "label1": 1, "label2": 2}
    assert info["max_input_length"] == MAX_TOKENS
    assert info["max_client_batch_size"] == MAX_INPUTS


@pytest.mark.parametrize(
    ("adapter_id", "body", "status", "word"),
    [
        ("review", {"inputs": "word1"}, 404, "`reviews`"),
        ("cut", {"inputs": "word1"}, 409, "refused"),
        ("reviews", {"inputs": ["word1", "word2", "word3"]}, 422, "a list of 3, neither one text nor a pair"),
        ("reviews", {"inputs": [["word1"], []]}, 422, "`inputs[1]` is a list of 0"),
        ("reviews", {"inputs": [["word1"], "word2"]}, 422, "`inputs[1]` must be a list"),
        ("reviews", {"inputs": ["word1", ["word2"]]}, 422, "`inputs[1]` must be a text, not a list"),
        ("reviews", {"inputs": [["word1", ""]]}, 422, "`inputs[0][1]` is an empty text"),
        ("reviews", {"inputs": []}, 422, "0 texts"),
        ("reviews", {"inputs": {"text": "word1"}}, 422, "an object"),
        ("reviews", {"inputs": [["word1"]] * (MAX_INPUTS + 1)}, 422, f"at most {MAX_INPUTS}"),
        ("reviews", {"inputs": "word1", "truncation_direction": "up"}, 422, "`truncation_direction`"),
        ("reviews", {"inputs": "x" * 100_000}, 413, "100000"),
    ],
)
def test_errors_have_the_shape_of_tei(
    server: Wired, adapter_id: str, body: dict[str, Any], status: int, word: str
) -> None:
    response = server.post(f"/tei/{adapter_id}/predict", body)
    assert response.status_code == status
    assert response.json()["error_type"] == "validation"
    assert word in response.json()["error"]


def test_a_body_that_is_no_json_and_another_method_are_told_in_the_same_shape(server: Wired) -> None:
    broken = httpx2.post(server.url + "/predict", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error_type"]) == (400, "validation")
    text = httpx2.post(server.url + "/predict", content=b"x", headers={"content-type": "text/plain"})
    assert (text.status_code, text.json()["error_type"]) == (415, "validation")
    other = server.get("/predict")
    assert (other.status_code, other.headers["allow"]) == (405, "POST")
    assert other.json()["error_type"] == "validation"


def test_what_a_caller_may_not_see_is_answered_as_unknown(server: Wired) -> None:
    with seeing(server, "reviews"):
        for path in ("predict", "info"):
            answers = []
            for name in ("stars", "staru"):
                url = f"/tei/{name}/{path}"
                response = server.get(url) if path == "info" else server.post(url, {"inputs": "word1"})
                assert response.status_code == 404
                answers.append(response.json()["error"].replace("stars", "staru"))
            assert answers[0] == answers[1]


def test_overload_is_429_with_retry_after_and_a_failed_pass_424(
    bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path_factory.mktemp("busy")
    make_adapters(root, bert_base)
    with wired(root, bert_base, max_waiting=2) as server:
        full = server.post("/tei/reviews/predict", {"inputs": [["word1"]] * 3})
        assert full.status_code == 429
        assert full.json()["error_type"] == "overloaded"
        assert int(full.headers["retry-after"]) >= 1

        def fail(**_: object) -> None:
            raise ValueError("no such layer")

        with monkeypatch.context() as patch:
            patch.setattr(server.service.base.backbone.embeddings, "forward", fail)
            failed = server.post("/tei/reviews/predict", {"inputs": "word1"})
        assert (failed.status_code, failed.json()["error_type"]) == (424, "backend")
        server.service.engine.close()
        stopped = server.post("/tei/reviews/predict", {"inputs": "word1"})
        assert (stopped.status_code, stopped.json()["error_type"]) == (503, "unhealthy")
