"""Keys: who is let in, what the file may hold, and how it changes while the server runs."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.callers import SCOPES
from server.command import main
from server.desk import Needs
from server.errors import SettingsError
from server.gate import Gate
from server.keys import CHECK_EVERY_S, Keys, add_make_key_flags, make_key
from server.service import Service
from tests.serving import Clock, bearer, endpoints, entry, make_adapters, routes, settings_for, write_keys

OPERATOR, READER, WATCHER, EXPIRED = "operator-1", "reader-1", "watcher-1", "expired-1"
ALL = (
    entry(OPERATOR, "classify", "admin", "metrics"),
    entry(READER, "classify"),
    entry(WATCHER, "metrics"),
    entry(EXPIRED, "classify", "admin", "metrics", expires="2020-01-31T00:00:00Z"),
)
BODY = {"adapter_id": "one", "inputs": "word1"}


@pytest.fixture(scope="module")
def service(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = make_adapters(tmp_path_factory.mktemp("keyed"), bert_base, ["one"])
    with Service(settings_for(root, bert_base)) as service:
        yield service


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys.json", *ALL)


@pytest.fixture
def client(service: Service, path: Path, clock: Clock) -> Iterator[TestClient]:
    with TestClient(create_app(service.desk, 100_000, Gate(Keys(path, clock)))) as client:
        yield client


def is_open(path: str) -> bool:
    return path in ("/", "/decision") or path.startswith(("/health/", "/v2/health/", "/assets/"))


def test_every_route_and_every_unknown_path_needs_a_key(client: TestClient) -> None:
    paths = [
        *endpoints(client.app),
        ("GET", "/nothing"),
        ("POST", "/v1/none"),
        ("OPTIONS", "/v1/classify"),
        ("GET", "/index.html"),
    ]
    for method, path in paths:
        response = client.request(method, path, content=b"no JSON", headers={"content-type": "application/json"})
        assert (response.status_code == 401) != is_open(path), (method, path)


def test_health_needs_no_key(client: TestClient) -> None:
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready", headers=bearer("wrong")).status_code == 200


@pytest.mark.parametrize(
    "asked",
    ["/health", "/healthy", "/x/health/live", "/HEALTH/live", "/v1/health/live", "/assets", "/x/assets/style.css"],
)
def test_only_paths_of_health_and_pages_are_open(client: TestClient, asked: str) -> None:
    assert client.get(asked).status_code == 401


def test_no_key_an_unknown_one_and_an_expired_one_are_answered_alike(client: TestClient) -> None:
    tried: list[dict[str, str]] = [
        {},
        bearer("unknown"),
        bearer(EXPIRED),
        {"X-API-Key": EXPIRED},
        {"Authorization": f"Basic {OPERATOR}"},
        {"Authorization": OPERATOR},
        {"Authorization": "Bearer"},
        bearer(OPERATOR[:-1]),
        bearer(OPERATOR + "x"),
        bearer(hashlib.sha256(OPERATOR.encode()).hexdigest()),
        bearer(OPERATOR) | {"X-API-Key": READER},
    ]
    answers = [client.post("/v1/classify", json=BODY, headers=headers) for headers in tried]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert answers[0].json()["code"] == "not_authenticated"


@pytest.mark.parametrize(
    "headers",
    [
        bearer(READER),
        {"authorization": f"bearer  {READER} "},
        {"X-API-Key": READER},
        bearer(READER) | {"X-API-Key": READER},
        {"Authorization": "Basic eDp5", "X-API-Key": READER},
    ],
)
def test_a_known_key_is_let_in(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/v1/classify", json=BODY, headers=headers).status_code == 200


def test_every_route_names_its_scope(client: TestClient) -> None:
    """A route without a scope would be open to every key; only documents and pages are."""
    without = set()
    for route in routes(client.app):
        dependant = getattr(route, "dependant", None)
        needs = [one.call for one in dependant.dependencies if isinstance(one.call, Needs)] if dependant else []
        if not needs and not is_open(route.path):
            without.add(route.path)
    assert without == {"/openapi.json", "/static-offline-docs", "/docs", "/docs/oauth2-redirect", "/redoc", "/assets"}


@pytest.mark.parametrize(("key", "scopes"), [(OPERATOR, SCOPES), (READER, {"classify"}), (WATCHER, {"metrics"})])
def test_a_key_does_what_its_scopes_say_and_nothing_else(client: TestClient, key: str, scopes: set[str]) -> None:
    asked = {
        "classify": [("POST", "/v1/classify"), ("GET", "/v1/adapters"), ("GET", "/v1/base")],
        "admin": [("PUT", "/v1/adapters/one"), ("DELETE", "/v1/adapters/two"), ("PUT", "/v1/adapters/one/alias")],
        "metrics": [("GET", "/metrics")],
    }
    for scope, calls in asked.items():
        for method, path in calls:
            response = client.request(method, path, json={**BODY}, headers=bearer(key))
            assert (response.status_code != 403) == (scope in scopes), (key, path)
            if scope not in scopes:
                assert response.json()["code"] == "scope_missing"


def test_without_a_key_file_everybody_is_let_in(service: Service) -> None:
    with TestClient(create_app(service.desk, 100_000)) as client:
        assert client.post("/v1/classify", json=BODY).status_code == 200
        assert client.get("/metrics", headers=bearer("whatever")).status_code == 200


def test_a_key_expires_to_the_second(path: Path) -> None:
    now = Clock(1_800_000_000.0)
    write_keys(path, entry("brief-1", "classify", expires="2027-01-15T08:00:00Z"))  # 1,800,000,000
    keys = Keys(path, Clock(), now)
    assert keys.caller(b"brief-1") is None
    now.now -= 0.001
    assert keys.caller(b"brief-1") is not None


def test_a_key_that_is_revoked_is_refused_within_a_second(client: TestClient, path: Path, clock: Clock) -> None:
    assert client.get("/v1/base", headers=bearer(READER)).status_code == 200
    write_keys(path, *(one for one in ALL if one["id"] != "reader"), entry("fresh-1", "classify"))
    clock.now += CHECK_EVERY_S
    assert client.get("/v1/base", headers=bearer(READER)).status_code == 401
    assert client.get("/v1/base", headers=bearer("fresh-1")).status_code == 200
    assert "adaptermux_keys 4.0" in client.get("/metrics", headers=bearer(OPERATOR)).text


def test_a_file_that_becomes_wrong_keeps_the_old_keys_and_says_so(
    client: TestClient, path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for spoil in ("{", "", '{"schema": 1}', None):
        if spoil is None:
            path.unlink()
        else:
            path.write_text(spoil)
        clock.now += CHECK_EVERY_S
        assert client.get("/v1/base", headers=bearer(READER)).status_code == 200
        assert "adaptermux_keys_fresh 0.0" in client.get("/metrics", headers=bearer(OPERATOR)).text
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["keys_refused"], "once, not every second"
    write_keys(path, entry(WATCHER, "metrics"))
    clock.now += CHECK_EVERY_S
    assert client.get("/v1/base", headers=bearer(READER)).status_code == 401
    assert "adaptermux_keys_fresh 1.0" in client.get("/metrics", headers=bearer(WATCHER)).text


def test_a_mounted_secret_is_followed_when_its_link_moves(tmp_path: Path) -> None:
    """As the kubelet does it: `keys.json` -> `..data/keys.json`, `..data` -> a folder that is new each time."""
    for name, key in (("..2027_1", "before-1"), ("..2027_2", "behind-1")):
        (tmp_path / name).mkdir()
        write_keys(tmp_path / name / "keys.json", entry(key, "classify"))
    (tmp_path / "..data").symlink_to("..2027_1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    clock = Clock()
    keys = Keys(tmp_path / "keys.json", clock)
    assert keys.caller(b"before-1") is not None
    (tmp_path / "..tmp").symlink_to("..2027_2")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")
    clock.now += CHECK_EVERY_S
    assert keys.caller(b"before-1") is None
    assert keys.caller(b"behind-1") is not None


def test_a_file_that_anybody_may_read_is_warned_of(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Keys(path)
    assert capsys.readouterr().err == ""
    path.chmod(0o644)
    Keys(path)
    assert json.loads(capsys.readouterr().err)["event"] == "key_file_world_readable"


GOOD = entry("good-1", "classify")
TENANTS = {"acme": {"adapters": ["acme-*"]}}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "`file`"),
        ({"keys": []}, "`schema`"),
        ({"schema": 2, "keys": []}, "`schema`"),
        ({"schema": 1, "keys": [GOOD], "extra": 1}, "`extra`"),
        ({"schema": 1, "keys": [GOOD | {"key": "secret"}]}, "`keys[0].key`"),
        ({"schema": 1, "keys": [GOOD | {"id": ""}]}, "`keys[0].id`"),
        ({"schema": 1, "keys": [GOOD | {"sha256": "secret"}]}, "`keys[0].sha256`"),
        ({"schema": 1, "keys": [GOOD | {"sha256": "A" * 64}]}, "`keys[0].sha256`"),
        ({"schema": 1, "keys": [GOOD | {"scopes": []}]}, "`keys[0].scopes`"),
        ({"schema": 1, "keys": [GOOD | {"scopes": ["root"]}]}, "`keys[0].scopes[0]`"),
        ({"schema": 1, "keys": [GOOD | {"expires": "2027-01-01T00:00:00"}]}, "timezone"),
        ({"schema": 1, "keys": [GOOD | {"expires": "soon"}]}, "`keys[0].expires`"),
        ({"schema": 1, "keys": [GOOD | {"tenant": "acme"}]}, "`keys[0].tenant`"),
        ({"schema": 1, "keys": [GOOD, GOOD | {"id": "other"}]}, "`keys[1].sha256`"),
        ({"schema": 1, "keys": [GOOD, entry("good-2", "admin")]}, "`keys[1].id`"),
        (
            {"schema": 1, "keys": [GOOD | {"tenant": "acme", "scopes": ["metrics"]}], "tenants": TENANTS},
            "`keys[0].scopes`",
        ),
        ({"schema": 1, "keys": [], "tenants": {"acme": {"adapters": []}}}, "`tenants.acme.adapters`"),
        ({"schema": 1, "keys": [], "tenants": {"acme": {"adapters": ["a b"]}}}, "`tenants.acme.adapters[0]`"),
        (
            {"schema": 1, "keys": [], "tenants": {"acme": {"adapters": ["*"], "texts_per_minute": 0}}},
            "`tenants.acme.texts_per_minute`",
        ),
        (
            {"schema": 1, "keys": [], "tenants": {"acme": {"adapters": ["*"], "texts_per_minute": "5"}}},
            "`tenants.acme.texts_per_minute`",
        ),
        ('{"schema": 1, "keys": [], "keys": []}', "twice"),
    ],
)
def test_a_wrong_file_stops_the_start_and_names_the_field_but_never_a_value(
    tmp_path: Path, content: Any, word: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SettingsError) as raised:
        Keys(path)
    assert word in str(raised.value)
    assert "secret" not in str(raised.value)
    with pytest.raises(SettingsError, match="cannot be read"):
        Keys(tmp_path / "missing.json")


def test_a_key_that_was_made_is_let_in_by_the_entry_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_make_key_flags(parser)
    arguments = "--id ci --tenant acme --scope classify --scope admin --expires 2100-01-01T00:00:00Z"
    flags = parser.parse_args(arguments.split())
    assert make_key(vars(flags)) == 0
    key, made = capsys.readouterr().out.splitlines()
    assert len(key) > 40
    assert key not in made
    caller = Keys(write_keys(tmp_path / "keys.json", json.loads(made), **TENANTS)).caller(key.encode())
    assert caller is not None
    assert (caller.key_id, caller.tenant, caller.scopes) == ("ci", "acme", frozenset({"classify", "admin"}))
    assert caller.sees("acme-1")
    assert not caller.sees("other-1")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--id x_y/z", "--id"),
        ("--id ci --expires soon", "--expires"),
        ("--id ci --tenant acme --scope metrics", "--scope"),
    ],
)
def test_a_key_that_could_not_be_used_is_not_made(
    arguments: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_make_key_flags(parser)
    with pytest.raises(SettingsError, match=word):
        make_key(vars(parser.parse_args(arguments.split())))
    assert capsys.readouterr().out == ""


def test_the_file_in_the_guide_is_read_as_it_stands(tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "security.md").read_text(encoding="utf-8")
    path = tmp_path / "keys.json"
    path.write_text(guide.partition("```json\n")[2].partition("```")[0])
    path.chmod(0o600)
    assert len(Keys(path)) == 2


def test_the_command_makes_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make-key", "--id", "ci"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[1])["scopes"] == ["classify"]
    assert main(["make-key", "--id", "two words"]) == 2
    assert "--id" in capsys.readouterr().err


def test_every_made_key_is_another(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(50):
        make_key({"id": "x", "tenant": None, "scope": None, "expires": None})
    keys = list(itertools.islice(capsys.readouterr().out.splitlines(), 0, None, 2))
    assert len(set(keys)) == 50
