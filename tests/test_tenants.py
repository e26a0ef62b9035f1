"""Tenants: what is not theirs does not exist for them, on whatever route they ask, also on routes to come."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.catalog import Catalog
from server.errors import AdapterNotFound
from server.gate import Gate
from server.keys import Keys
from server.record import Record
from server.service import Service
from tests.serving import bearer, endpoints, entry, make_adapters, settings_for, write_keys

ACME, OTHER, OPERATOR = "acme-key-1", "other-key-1", "operator-1"
HIDDEN, UNKNOWN = "other-secret", "other-absent"
NAMES = ["acme-mail", "acme-news", "acmes-hidden", HIDDEN]


@pytest.fixture(scope="module")
def service(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = make_adapters(tmp_path_factory.mktemp("shared"), bert_base, NAMES)
    with Service(settings_for(root, bert_base)) as service:
        service.lifecycle.put("acme-news", None, tags=["common"])
        service.lifecycle.put(HIDDEN, None, tags=["common", "private"])
        yield service


@pytest.fixture(scope="module")
def client(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(
        path,
        entry(ACME, "classify", "admin", tenant="acme"),
        entry(OTHER, "classify", "admin", tenant="other", id="other"),
        entry(OPERATOR, "classify", "admin", "metrics"),
        acme={"adapters": ["acme-*"]},
        other={"adapters": ["other-*"]},
    )
    app = create_app(service.desk, 100_000, Gate(Keys(path)))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def bodies(name: str) -> list[Any]:
    """What any of our routes, or of the servers whose routes we offer, may be sent to use or change an adapter."""
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["word1"]}
    return [
        None,
        {"adapter_id": name, "inputs": "word1"},
        {"adapter_id": f"{name}@000000000000", "inputs": "word1"},
        {"inputs": "word1"},
        {"inputs": "word1", "adapters": [name]},
        {"inputs": ["word1"], "adapters": ["acme-news", name]},
        {"model": name, "input": "word1"},
        {"model": name, "inputs": "word1", "adapter": name},
        {"inputs": [text], "parameters": {"adapter_id": name}},
        {"lora_name": name, "lora_path": f"/nowhere/{name}"},
        {"lora_name": name},
        {"source": f"file:/nowhere/{name}"},
        {"tags": ["mine"], "pinned": True},
        {"version": "000000000000"},
        {"versions": [{"version": "000000000000", "weight": 1}]},
        {"rollback": True},
    ]


def seen(response: Response, name: str) -> tuple[int, str, dict[str, str]]:
    """All that can be told from an answer, with the name taken out, and times, which are never the same."""
    body = re.sub(r'"timing_ms":{[^}]*}', "", response.text.replace(name, "NAME"))
    headers = {key: value for key, value in response.headers.items() if key not in ("x-request-id", "server-timing")}
    return response.status_code, body, headers | {"content-length": ""}


def test_an_adapter_of_another_tenant_is_to_every_route_as_one_that_is_not_there(
    client: TestClient, service: Service
) -> None:
    before = service.catalog.get(HIDDEN)
    for method, path in endpoints(client.app):
        for reference in ("{}", "{}@000000000000", "{}@" + next(iter(before.versions)) if before else ""):
            for hidden, unknown in zip(bodies(HIDDEN), bodies(UNKNOWN), strict=True):
                answers = []
                for name, body in ((HIDDEN, hidden), (UNKNOWN, unknown)):
                    url = re.sub(r"{[^}]*}", reference.format(name), path)
                    response = client.request(method, url, json=body, headers=bearer(ACME))
                    answers.append(seen(response, name))
                    assert response.status_code < 500, (method, url, body)
                assert answers[0] == answers[1], (method, path, hidden)
    assert service.catalog.get(HIDDEN) is before


def test_no_answer_to_a_tenant_names_what_is_not_theirs(client: TestClient) -> None:
    """Not even as a near name, whatever is asked for."""
    for method, path in endpoints(client.app):
        for name in ("acme-mail", "acme-hidden", "acmes-hidde", "other-secre", "o", "private"):
            for body in bodies(name):
                if (method, body) == ("DELETE", None):
                    continue
                url = re.sub(r"{[^}]*}", name, path)
                text = client.request(method, url, json=body, headers=bearer(ACME)).text
                assert HIDDEN not in text, (method, url, body)
                assert "acmes-hidden" not in text, (method, url, body)


def test_the_list_holds_what_is_theirs_and_operators_see_all(client: TestClient) -> None:
    for key, names in ((ACME, ["acme-mail", "acme-news"]), (OTHER, [HIDDEN]), (OPERATOR, NAMES)):
        listed = client.get("/v1/adapters", headers=bearer(key)).json()["adapters"]
        assert [one["adapter_id"] for one in listed] == names


def test_a_tag_finds_only_what_is_theirs(client: TestClient) -> None:
    def ask(tag: str) -> Response:
        body = {"adapters": f"tag:{tag}", "inputs": "word1"}
        return client.post("/v1/classify/fanout", json=body, headers=bearer(ACME))

    assert [one["adapter_id"] for one in ask("common").json()["results"]] == ["acme-news"]
    assert seen(ask("private"), "private") == seen(ask("missing"), "missing")
    assert ask("private").status_code == 404
    for tag in ("private", "missing"):
        listed = client.get("/v1/adapters", params={"tag": tag}, headers=bearer(ACME)).json()
        assert listed == {"adapters": [], "trouble": None}


def test_what_is_theirs_can_be_used_and_changed(client: TestClient) -> None:
    body = {"adapter_id": "acme-mail", "inputs": "word1"}
    assert client.post("/v1/classify", json=body, headers=bearer(ACME)).status_code == 200
    response = client.put("/v1/adapters/acme-mail", json={"tags": ["mine"]}, headers=bearer(ACME))
    assert response.json()["tags"] == ["mine"]


@pytest.mark.parametrize("name", [HIDDEN, UNKNOWN, "acmes-hidden", "acm", "x" * 128])
def test_changing_what_is_not_theirs_is_403_whether_or_not_it_is_there(client: TestClient, name: str) -> None:
    calls: list[tuple[str, str, Any]] = [
        ("PUT", f"/v1/adapters/{name}", {"tags": ["x"]}),
        ("PUT", f"/v1/adapters/{name}", {"source": "file:/nowhere"}),
        ("PUT", f"/v1/adapters/{name}/alias", {"rollback": True}),
        ("DELETE", f"/v1/adapters/{name}", None),
        ("DELETE", f"/v1/adapters/{name}@000000000000", None),
    ]
    for method, path, body in calls:
        response = client.request(method, path, json=body, headers=bearer(ACME))
        assert (response.status_code, response.json()["code"]) == (403, "adapter_forbidden")
        assert response.json()["detail"] == "your key is for adapters named `acme-*`"


def test_metrics_are_not_for_tenants(client: TestClient) -> None:
    assert client.get("/metrics", headers=bearer(ACME)).status_code == 403
    assert client.get("/metrics", headers=bearer(OPERATOR)).status_code == 200


@pytest.mark.parametrize("num_hidden", [0, 1, 199, 200, 201, 1000])
def test_near_names_do_not_depend_on_what_is_hidden(num_hidden: int) -> None:
    catalog = Catalog()
    for name in ("acme-mail", "acme-news", *(f"other-{index}" for index in range(num_hidden))):
        catalog.put(Record(name))
    with pytest.raises(AdapterNotFound, match="did you mean `acme-mail`") as raised:
        catalog.find("xcme-mail", lambda name: name.startswith("acme-"))
    assert "other" not in str(raised.value)


def test_the_description_of_the_api_names_no_adapter(client: TestClient) -> None:
    text = json.dumps(client.get("/openapi.json", headers=bearer(ACME)).json())
    assert not any(name in text for name in NAMES)
