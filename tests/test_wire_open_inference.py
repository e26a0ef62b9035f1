"""Triton's own client against our Open Inference Protocol, and its routes as KServe's clients send them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from server.base_model import BaseModel
from tests.wired import MAX_INPUTS, MAX_TOKENS, Wired, make_adapters, seeing, wired

HEADER = "Inference-Header-Content-Length"
TEXTS = ["word1", "word2 word3"]


@pytest.fixture(scope="module")
def server(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    root = tmp_path_factory.mktemp("served")
    make_adapters(root, bert_base)
    with wired(root, bert_base) as server:
        yield server


@pytest.fixture
def client(server: Wired) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def tensor(name: str, texts: list[str], binary: bool) -> triton.InferInput:
    made = triton.InferInput(name, [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=binary)
    return made


def body(*texts: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}]} | more


def infer(server: Wired, request: object, adapter_id: str = "reviews") -> dict[str, Any]:
    response = server.post(f"/v2/models/{adapter_id}/infer", request)
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json()["outputs"]}


def test_tritons_client_finds_a_server_that_is_ready(server: Wired, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "adaptermux"
    version = server.version("reviews")
    assert client.is_model_ready("reviews")
    assert client.is_model_ready("reviews", version)
    assert not client.is_model_ready("reviews", "000000000000")
    assert not client.is_model_ready("cut")
    assert not client.is_model_ready("nobody")


def test_metadata_tells_versions_tensors_and_labels(server: Wired, client: triton.InferenceServerClient) -> None:
    version = server.version("reviews")
    found = client.get_model_metadata("reviews")
    assert found == client.get_model_metadata("reviews", version)
    assert (found["name"], found["versions"]) == ("reviews", [version])
    assert [one["name"] for one in found["inputs"]] == ["text", "text_pair"]
    assert {one["name"]: one["shape"] for one in found["outputs"]} == {
        "label": [-1],
        "score": [-1],
        "probabilities": [-1, 3],
        "logits": [-1, 3],
    }
    assert found["parameters"] == {
        "labels": ["label0", "label1", "label2"],
        "problem_type": "single_label",
        "max_length": MAX_TOKENS,
    }


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
def test_tritons_client_gets_the_outputs_it_asks_for(
    server: Wired, client: triton.InferenceServerClient, binary: bool, binary_output: bool
) -> None:
    names = ["logits", "label", "score", "probabilities"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in names]
    version = server.version("reviews")
    result = client.infer("reviews", [tensor("text", TEXTS, binary)], version, outputs, request_id="42")
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("reviews", version, "42")
    assert [one["name"] for one in answer["outputs"]] == names
    soft, raw = server.native("reviews", TEXTS), server.native("reviews", TEXTS, output="logits")
    labels = ["label0", "label1", "label2"]
    expected = [[scores[label] for label in labels] for scores in soft]
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    np.testing.assert_allclose(
        result.as_numpy("logits"), [[scores[label] for label in labels] for scores in raw], atol=1e-5
    )
    best = [one.decode() if isinstance(one, bytes) else one for one in result.as_numpy("label").tolist()]
    assert best == [next(iter(scores)) for scores in soft]
    np.testing.assert_allclose(result.as_numpy("score"), [max(scores.values()) for scores in soft], atol=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_tritons_client_gets_the_usual_outputs_if_it_names_none(
    server: Wired, client: triton.InferenceServerClient, binary: bool
) -> None:
    result = client.infer("tags", [tensor("text", TEXTS, binary), tensor("text_pair", ["word4", "wörd5"], binary)])
    assert [one["name"] for one in result.get_response()["outputs"]] == ["label", "score", "probabilities"]
    pairs = [{"text": TEXTS[0], "text_pair": "word4"}, {"text": TEXTS[1], "text_pair": "wörd5"}]
    expected = [[scores[f"label{index}"] for index in range(4)] for scores in server.native("tags", pairs)]
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)


def test_tritons_client_reads_what_is_wrong(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="did you mean `reviews`") as caught:
        client.infer("review", [tensor("text", TEXTS, True)])
    assert caught.value.status() == "404"


def test_tritons_client_pins_and_unpins(server: Wired, client: triton.InferenceServerClient) -> None:
    client.load_model("intents")
    assert server.get("/v1/adapters/intents").json()["pinned"] is True
    client.unload_model("intents")
    assert server.get("/v1/adapters/intents").json()["pinned"] is False
    assert client.is_model_ready("intents")
    with pytest.raises(InferenceServerException, match="there is no adapter"):
        client.load_model("nobody")


@pytest.mark.parametrize(("shape", "data"), [([2], TEXTS), ([2, 1], TEXTS), ([2, 1], [[one] for one in TEXTS])])
def test_data_may_be_flat_or_nested_and_a_single_tensor_may_have_any_name(
    server: Wired, shape: list[int], data: list[Any]
) -> None:
    request = {"inputs": [{"name": "input-0", "shape": shape, "datatype": "BYTES", "data": data}]}
    assert infer(server, request) == infer(server, body(*TEXTS))


def test_a_long_text_is_cut_only_when_asked(server: Wired) -> None:
    text = "word1 " * 50
    response = server.post("/v2/models/reviews/infer", body(text))
    assert response.status_code == 400
    assert response.json()["error"].startswith("`inputs[0].data[0]` has 52 tokens")
    cut = infer(server, body(text, parameters={"truncate": True, "priority": 1}))
    assert cut == infer(server, body("word1 " * (MAX_TOKENS - 2)))


def test_a_version_in_the_address_is_the_adapters(server: Wired) -> None:
    version = server.version("reviews")
    answer = server.post(f"/v2/models/reviews/versions/{version}/infer", body("word1")).json()
    assert answer["model_version"] == version
    unknown = server.post("/v2/models/reviews/versions/1/infer", body("word1"))
    assert unknown.status_code == 404
    assert "has no version '1'" in unknown.json()["error"]


def test_models_are_listed(server: Wired) -> None:
    assert server.get("/v2/models").json() == {"models": ["intents", "reviews", "stars", "tags"]}


def test_version_1_predicts(server: Wired) -> None:
    instances = ["word1", {"text": "word2", "text_pair": "word3"}]
    predictions = server.post("/v1/models/reviews:predict", {"instances": instances}).json()["predictions"]
    for one, native in zip(predictions, server.native("reviews", instances), strict=True):
        assert one["probabilities"] == pytest.approx(native, abs=1e-6)
        assert one["label"] == next(iter(native))
        assert math.isclose(one["score"], max(native.values()), abs_tol=1e-6)
    response = server.post("/v1/models/reviews:predict", {"instances": ["word1", "word1 " * 20]})
    assert response.status_code == 400
    assert "`instances[1]`" in response.json()["error"]


TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["word1"]}


@pytest.mark.parametrize(
    ("adapter_id", "request_body", "status", "word"),
    [
        ("nobody", body("word1"), 404, "nobody"),
        ("cut", body("word1"), 409, "refused"),
        ("reviews", {}, 400, "`inputs`"),
        ("reviews", {"inputs": []}, 400, "`inputs`"),
        ("reviews", {"inputs": [TENSOR | {"shape": [2]}]}, 400, "`inputs[0].shape` is [2]"),
        ("reviews", {"inputs": [TENSOR | {"shape": [0], "data": []}]}, 400, "0 texts"),
        ("reviews", {"inputs": [TENSOR | {"datatype": "FP32"}]}, 400, "`inputs[0].datatype`"),
        ("reviews", {"inputs": [TENSOR | {"data": [1]}]}, 400, "`inputs[0].data[0]` must be a text, not a number"),
        ("reviews", {"inputs": [TENSOR | {"data": [[["word1"]]]}]}, 400, "`inputs[0].data[0][0]`"),
        ("reviews", {"inputs": [TENSOR | {"data": "word1"}]}, 400, "`inputs[0].data` must be a list"),
        ("reviews", {"inputs": [TENSOR | {"data": [""]}]}, 400, "empty"),
        ("reviews", {"inputs": [TENSOR | {"name": "text_pair"}]}, 400, "text_pair without text"),
        ("reviews", {"inputs": [TENSOR, TENSOR]}, 400, "not text and text_pair"),
        (
            "reviews",
            {"inputs": [TENSOR, TENSOR | {"name": "text_pair", "shape": [2], "data": TEXTS}]},
            400,
            "1 texts, but 2 second texts",
        ),
        ("reviews", body("word1", outputs=[{"name": "embedding"}]), 400, "`outputs[0].name`"),
        (
            "reviews",
            body("word1", outputs=[{"name": "logits", "parameters": {"classification": 2}}]),
            400,
            "classification",
        ),
        ("reviews", body("word1", id="x" * 257), 400, "`id`"),
        ("reviews", body(*["word1"] * (MAX_INPUTS + 1)), 400, str(MAX_INPUTS)),
        ("reviews", body("x" * 100_000), 413, "100000"),
    ],
)
def test_errors_have_the_shape_of_the_protocol(
    server: Wired, adapter_id: str, request_body: dict[str, Any], status: int, word: str
) -> None:
    response = server.post(f"/v2/models/{adapter_id}/infer", request_body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert word in response.json()["error"]


def element(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def send(server: Wired, head: object, tail: bytes, length: str | None = None) -> httpx2.Response:
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    headers = {HEADER: str(len(raw)) if length is None else length, "content-type": "application/octet-stream"}
    return httpx2.post(f"{server.url}/v2/models/reviews/infer", content=raw + tail, headers=headers)


def with_size(size: object) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}]}


def test_bytes_behind_the_json_are_texts(server: Wired) -> None:
    data = element(b"word1")
    response = send(server, with_size(len(data)), data)
    assert response.status_code == 200
    assert {one["name"]: one for one in response.json()["outputs"]} == infer(server, body("word1"))


@pytest.mark.parametrize(
    ("head", "tail", "length", "word"),
    [
        (with_size(9), element(b"word1"), "99999", "at most"),
        (with_size(9), element(b"word1"), "-1", "at most"),
        (with_size(9), element(b"word1"), "²", "at most"),
        (with_size(9), element(b"word1"), "1" * 5_000, "at most"),
        (b"{", b"", None, "not JSON"),
        (b"[" * 50_000, b"", None, "not JSON"),
        (b"\xff\xfe", b"", None, "not JSON"),
        (b"[1]", b"", None, "must be an object, not a list"),
        (b'{"inputs": 7}', b"", None, "`inputs`"),
        (b'{"inputs": [7]}', b"", None, "`inputs[0]`"),
        (with_size(10), element(b"word1"), None, "10 bytes are its own; 9 are left"),
        (with_size(-1), element(b"word1"), None, "9 are left"),
        (with_size("9"), element(b"word1"), None, "9 bytes of the body belong to no tensor"),
        (with_size(8), element(b"word1"), None, "ends within its element 0"),
        (with_size(2), b"ab", None, "ends within its element 0"),
        (with_size(6), element(b"\xff\xfe"), None, "not UTF-8"),
        (with_size(0), b"", None, "0 texts"),
    ],
)
def test_bytes_that_are_cut_or_wrong_are_refused(
    server: Wired, head: object, tail: bytes, length: str | None, word: str
) -> None:
    raw = length.encode() if length is not None and not length.isascii() else length
    response = send(server, head, tail, raw)  # type: ignore[arg-type]
    assert response.status_code == 400
    assert word in response.json()["error"]


def test_a_body_of_another_type_is_415_and_one_that_is_no_json_400(server: Wired) -> None:
    url = f"{server.url}/v2/models/reviews/infer"
    text = httpx2.post(url, content=b"word1", headers={"content-type": "text/plain"})
    assert (text.status_code, "application/json" in text.json()["error"]) == (415, True)
    for content, status in ((b"", 415), (b"{", 400)):
        broken = httpx2.post(url, content=content)
        assert broken.status_code == status
        assert list(broken.json()) == ["error"]


def test_an_id_that_is_no_text_is_refused(server: Wired) -> None:
    raw = json.dumps(body("word1", id="\ud800"))
    response = httpx2.post(f"{server.url}/v2/models/reviews/infer", content=raw)
    assert response.status_code == 400
    assert "`id`" in response.json()["error"]


def test_what_a_caller_may_not_see_is_answered_as_unknown(server: Wired) -> None:
    with seeing(server, "reviews"):
        assert server.get("/v2/models").json() == {"models": ["reviews"]}
        for path in ("", "/ready", "/versions/1", "/infer"):
            answers = []
            for name in ("stars", "staru"):
                url = f"/v2/models/{name}{path}"
                response = server.post(url, body("word1")) if path == "/infer" else server.get(url)
                assert response.status_code == 404
                answers.append(response.json()["error"].replace("stars", "staru"))
            assert answers[0] == answers[1]


def test_a_dead_engine_is_neither_live_nor_ready(
    bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with wired(tmp_path_factory.mktemp("none"), bert_base) as server:
        assert server.get("/v2/health/live").json() == {"live": True}
        assert server.get("/v2/health/ready").json() == {"ready": True}
        server.service.engine.close()
        for path, field in (("live", "live"), ("ready", "ready")):
            response = server.get(f"/v2/health/{path}")
            assert (response.status_code, response.json()) == (503, {field: False})
