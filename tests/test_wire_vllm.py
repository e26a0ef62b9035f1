"""vLLM's routes, with OpenAI's own client where it has one, and SGLang's two."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.base_model import BaseModel
from tests.seeded import make_adapter, peft_configs
from tests.wired import MAX_INPUTS, MAX_TOKENS, Wired, make_adapters, seeing, wired

WORD = 5
"""Token id of `word0`."""


@pytest.fixture(scope="module")
def server(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    root = tmp_path_factory.mktemp("served")
    make_adapters(root, bert_base)
    with wired(root, bert_base) as server:
        yield server


def classify(server: Wired, **body: Any) -> dict[str, Any]:
    response = server.post("/classify", {"model": "reviews"} | body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def in_order(scores: dict[str, float]) -> list[float]:
    return [scores[label] for label in sorted(scores)]


def test_probabilities_are_in_the_order_of_the_adapters_own_labels(server: Wired) -> None:
    answer = classify(server, input=["word1", "word2 word3"], user="me", priority=3)
    native = server.native("reviews", ["word1", "word2 word3"])
    assert answer["object"] == "list"
    assert answer["model"] == "reviews"
    assert answer["id"].startswith("classify-")
    assert abs(answer["created"] - time.time()) < 60
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "total_tokens": 7,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    for index, (one, scores) in enumerate(zip(answer["data"], native, strict=True)):
        assert one["index"] == index
        assert one["probs"] == pytest.approx(in_order(scores), abs=1e-6)
        assert one["label"] == max(scores, key=scores.__getitem__)
        assert one["num_classes"] == 3


@pytest.mark.parametrize("adapter_id", ["reviews", "tags", "stars"])
def test_without_activation_the_logits_are_given(server: Wired, adapter_id: str) -> None:
    for use, output in ((False, "logits"), (True, "probabilities"), (None, "probabilities")):
        [one] = classify(server, model=adapter_id, input="word7", use_activation=use)["data"]
        assert one["probs"] == in_order(server.native(adapter_id, "word7", output=output)[0])


def test_token_ids_are_taken_as_they_are(server: Wired) -> None:
    ids = [2, WORD + 1, WORD + 2, 3]  # [CLS] word1 word2 [SEP]
    expected = classify(server, input="word1 word2")["data"]
    assert classify(server, input=ids)["data"] == expected
    both = classify(server, input=[ids, [2, WORD + 9, 3]])["data"]
    assert both[0]["probs"] == pytest.approx(expected[0]["probs"], abs=1e-6)
    assert both[1]["label"] == classify(server, input="word9")["data"][0]["label"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_are_cut_to_the_length_and_at_the_end_that_are_named(server: Wired, side: str) -> None:
    words = [f"word{index}" for index in range(30)]
    for asked, length in ((6, 6), (-1, MAX_TOKENS), (400, MAX_TOKENS)):
        cut = classify(server, input=" ".join(words), truncate_prompt_tokens=asked, truncation_side=side)
        kept = words[: length - 2] if side == "right" else words[2 - length :]
        assert cut["data"] == classify(server, input=" ".join(kept))["data"]
        assert cut["usage"]["prompt_tokens"] == length


def test_the_request_id_is_given_back(server: Wired) -> None:
    body = {"model": "reviews", "input": "word1"}
    assert server.post("/classify", body, {"X-Request-Id": "r-7"}).json()["id"] == "classify-r-7"


@pytest.mark.parametrize(
    ("body", "status", "param", "word"),
    [
        ({"model": "review", "input": "word1"}, 404, None, "`reviews`"),
        ({"model": "cut", "input": "word1"}, 409, None, "refused"),
        ({"input": "word1"}, 400, "model", "no classes of its own"),
        ({"model": "reviews"}, 400, "input", "required"),
        ({"model": "reviews", "input": ""}, 400, "input", "empty"),
        ({"model": "reviews", "input": []}, 400, "input", "0 texts"),
        ({"model": "reviews", "input": [[]]}, 400, "input[0]", "a list"),
        ({"model": "reviews", "input": [1, "word1"]}, 400, "input", "token ids"),
        ({"model": "reviews", "input": ["word1", 1]}, 400, "input[1]", "a number"),
        ({"model": "reviews", "input": [True]}, 400, "input[0]", "a boolean"),
        ({"model": "reviews", "input": [2, 600, 3]}, 400, "input", "token id 600; the base model has 0 to 596"),
        ({"model": "reviews", "input": [2] * 13}, 400, "input", "takes 12"),
        ({"model": "reviews", "input": [2] * 10_001}, 400, "input", "takes 12"),
        ({"model": "reviews", "input": ["word1"] * (MAX_INPUTS + 1)}, 400, "inputs", str(MAX_INPUTS)),
        ({"model": "reviews", "input": "word1", "truncate_prompt_tokens": 2}, 400, "input", "nothing is left"),
        ({"model": "reviews", "input": "word1", "truncate_prompt_tokens": 0}, 400, "input", "nothing is left"),
        (
            {"model": "reviews", "input": "word1", "truncate_prompt_tokens": -2},
            400,
            "truncate_prompt_tokens",
            "greater than or equal to -1",
        ),
        ({"model": "reviews", "input": "word1", "normalize": True}, 400, "normalize", "use_activation"),
        ({"model": "reviews", "input": "word1", "messages": []}, 400, "messages", "chats"),
        ({"model": "reviews", "input": "word1", "add_special_tokens": False}, 400, "add_special_tokens", "True"),
        ({"model": "reviews", "input": "x" * 100_000}, 413, None, "100000"),
    ],
)
def test_errors_have_the_shape_of_vllm(
    server: Wired, body: dict[str, Any], status: int, param: str | None, word: str
) -> None:
    response = server.post("/classify", body)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (status, param)
    assert word in error["message"]
    assert error["type"] == {400: "BadRequestError", 404: "NotFoundError"}.get(status, error["type"])


def test_the_base_model_is_no_classifier(server: Wired) -> None:
    response = server.post("/classify", {"model": server.service.desk.base.name, "input": "word1"})
    assert response.status_code == 400
    assert "no classes of its own" in response.json()["error"]["message"]


def test_openais_client_lists_the_base_model_and_the_adapters_that_are_served(server: Wired) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    found = {model.id: model for model in client.models.list()}
    base = server.service.desk.base.name
    assert set(found) == {base, "reviews", "intents", "tags", "stars"}
    for name, model in found.items():
        assert model.object == "model"
        assert abs(model.created - time.time()) < 3600
        assert model.model_dump()["parent"] == (None if name == base else base)
    assert found["reviews"].model_dump()["max_model_len"] == MAX_TOKENS
    with seeing(server, "ta*"):
        assert {model.id for model in client.models.list()} == {base, "tags"}


def test_what_a_caller_may_not_see_is_answered_as_unknown(server: Wired) -> None:
    with seeing(server, "reviews"):
        for path, field in (("/classify", "model"), ("/v1/unload_lora_adapter", "lora_name")):
            hidden, unknown = (server.post(path, {field: name, "input": "word1"}) for name in ("stars", "staru"))
            assert hidden.status_code == unknown.status_code == 404
            assert hidden.text.replace("stars", "staru") == unknown.text
        forbidden = server.post("/v1/load_lora_adapter", {"lora_name": "stars", "lora_path": "/anywhere"})
        assert forbidden.status_code == 403


@pytest.fixture
def made(bert_base: BaseModel, tmp_path: Path) -> Path:
    """An adapter outside the adapters folder."""
    make_adapter(tmp_path / "made" / "v1", bert_base.folder, peft_configs("bert")["lora-qv"], 2, seed=5)
    return tmp_path / "made"


@pytest.fixture
def empty(bert_base: BaseModel, made: Path, tmp_path: Path) -> Iterator[Wired]:
    """A server without adapters that may fetch some."""
    (tmp_path / "served").mkdir()
    with wired(tmp_path / "served", bert_base, source_root=f"{made},hf:nobody", look_s=0) as server:
        yield server


def names(server: Wired) -> list[str]:
    return [model["id"] for model in server.get("/v1/models").json()["data"][1:]]


def test_an_adapter_is_loaded_listed_asked_and_unloaded(empty: Wired, made: Path) -> None:
    path = str(made / "v1")
    loaded = empty.post("/v1/load_lora_adapter", {"lora_name": "topics", "lora_path": path})
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'topics' added successfully.")
    assert loaded.headers["content-type"].startswith("text/plain")
    [card] = empty.get("/v1/models").json()["data"][1:]
    assert card["id"] == "topics"
    assert card["root"].endswith(path)
    assert classify(empty, model="topics", input="word1")["data"][0]["label"] in ("LABEL_0", "LABEL_1")
    unloaded = empty.post("/v1/unload_lora_adapter", {"lora_name": "topics", "lora_int_id": None})
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'topics' removed successfully.")
    assert names(empty) == []
    assert empty.post("/classify", {"model": "topics", "input": "word1"}).status_code == 404


def test_an_adapter_is_loaded_again_only_in_place(empty: Wired, made: Path, bert_base: BaseModel) -> None:
    body = {"lora_name": "topics", "lora_path": str(made / "v1")}
    assert empty.post("/v1/load_lora_adapter", body).status_code == 200
    before = empty.version("topics")
    again = empty.post("/v1/load_lora_adapter", body)
    assert again.status_code == 400
    assert again.json()["error"]["type"] == "InvalidUserInput"
    assert "has already been loaded" in again.json()["error"]["message"]
    make_adapter(made / "v2", bert_base.folder, peft_configs("bert")["ia3-paper"], 2, seed=6)
    in_place = body | {"lora_path": str(made / "v2")} | {"load_inplace": True}
    assert empty.post("/v1/load_lora_adapter", in_place).status_code == 200
    assert empty.version("topics") != before


@pytest.mark.parametrize(
    ("name", "path", "status", "kind", "word"),
    [
        ("topics", "{made}/v2", 404, "NotFoundError", "v2"),
        ("topics", "/elsewhere/v1", 403, "SourceForbidden", "elsewhere"),
        ("topics", "s3://bucket/v1", 403, "SourceForbidden", "s3://bucket/v1"),
        ("topics", "someone/else", 403, "SourceForbidden", "hf:someone/else"),
        ("topics", "huggingface://someone/else", 403, "SourceForbidden", "hf:someone/else"),
        ("topics", "v1", 400, "InvalidUserInput", "absolute path"),
        ("topics", "", 400, "InvalidUserInput", "absolute path"),
        ("no good name", "{made}/v1", 400, "BadRequestError", "A-Z"),
        ("tiny-bert", "{made}/v1", 400, "InvalidUserInput", "is the base model"),
        (None, "{made}/v1", 400, "InvalidUserInput", "lora_name"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_the_shapes_of_vllm_and_sglang(
    empty: Wired, made: Path, name: str | None, path: str, status: int, kind: str, word: str
) -> None:
    if name == "tiny-bert":
        name = empty.service.desk.base.name
    body = {"lora_name": name, "lora_path": path.format(made=made)}
    response = empty.post("/v1/load_lora_adapter", body)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert word in response.json()["error"]["message"]
    same = empty.post("/load_lora_adapter", body)
    assert same.status_code == (400 if status == 404 else status)
    assert same.json() == {
        "success": False,
        "error_message": response.json()["error"]["message"],
        "loaded_adapters": {},
    }


def test_an_adapter_that_lies_in_the_folder_is_not_unloaded(server: Wired) -> None:
    response = server.post("/v1/unload_lora_adapter", {"lora_name": "tags"})
    assert response.status_code == 409
    assert "remove it there" in response.json()["error"]["message"]
    same = server.post("/unload_lora_adapter", {"lora_name": "tags"})
    assert (same.status_code, same.json()["success"]) == (400, False)
    assert "tags" in names(server)


def test_sglangs_routes_load_pin_and_unload(empty: Wired, made: Path) -> None:
    body = {"lora_name": "topics", "lora_path": str(made / "v1"), "pinned": True}
    loaded = empty.post("/load_lora_adapter", body).json()
    assert (loaded["success"], loaded["error_message"]) == (True, None)
    assert loaded["loaded_adapters"]["topics"].endswith(str(made / "v1"))
    assert empty.get("/v1/adapters/topics").json()["pinned"] is True
    unloaded = empty.post("/unload_lora_adapter", {"lora_name": "topics"}).json()
    assert unloaded == {"success": True, "error_message": None, "loaded_adapters": {}}
    assert empty.post("/unload_lora_adapter", {"lora_name": "topics"}).status_code == 400
