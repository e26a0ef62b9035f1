"""Quotas: what a tenant may ask for in a minute and at one time."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.callers import ANYBODY, Caller, Limits
from server.errors import (
    AdaptermuxError,
    AdapterNotFound,
    EngineStopped,
    LoadFailed,
    Overloaded,
    QuotaExceeded,
    TooManyInputs,
)
from server.gate import Gate
from server.jobs import Answer, Job
from server.keys import CHECK_EVERY_S, Keys
from server.metrics import Metrics
from server.quotas import OwnAccounts, Quotas
from server.routes import batch
from server.service import Service
from tests.serving import Clock, bearer, entry, make_adapters, settings_for, until, write_keys

ACME, OTHER, OPERATOR = "acme-1", "other-1", "operator-1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(Metrics(0), clock)


def tenant(name: str = "acme", **limits: int) -> Caller:
    return Caller(name, name, limits=Limits(**limits))


def test_a_minutes_requests_may_come_at_once_and_the_next_when_its_time_has_come(quotas: Quotas, clock: Clock) -> None:
    caller = tenant(requests_per_minute=6)
    for _ in range(6):
        quotas.count_request(caller, 1)
    with pytest.raises(QuotaExceeded) as raised:
        quotas.count_request(caller, 1)
    assert raised.value.retry_after_s == 10
    clock.now += 9.9
    with pytest.raises(QuotaExceeded):
        quotas.count_request(caller, 1)
    clock.now += 0.1
    quotas.count_request(caller, 1)


def test_a_refused_request_uses_nothing_up(quotas: Quotas, clock: Clock) -> None:
    caller = tenant(requests_per_minute=2, texts_per_minute=10)
    quotas.count_request(caller, 8)
    for _ in range(5):
        with pytest.raises(QuotaExceeded, match="10 texts a minute"):
            quotas.count_request(caller, 3)
    quotas.count_request(caller, 2)
    with pytest.raises(QuotaExceeded, match="2 requests a minute"):
        quotas.count_request(caller, 1)


def test_what_is_larger_than_a_minutes_worth_is_let_in_when_the_account_is_full_and_paid_for(
    quotas: Quotas, clock: Clock
) -> None:
    caller = tenant(tokens_per_minute=60)
    quotas.count_tokens(caller, 180)
    with pytest.raises(QuotaExceeded) as raised:
        quotas.count_tokens(caller, 1)
    assert raised.value.retry_after_s == 121
    clock.now += 121
    quotas.count_tokens(caller, 1)


def test_tokens_that_are_given_back_may_be_taken_again_and_fill_no_account_beyond_a_minutes_worth(
    quotas: Quotas, clock: Clock
) -> None:
    caller = tenant(tokens_per_minute=60)
    quotas.count_tokens(caller, 180)
    quotas.give_back_tokens(caller, 180)
    quotas.count_tokens(caller, 60)
    clock.now += 60
    quotas.give_back_tokens(caller, 60)
    quotas.count_tokens(caller, 60)
    with pytest.raises(QuotaExceeded):
        quotas.count_tokens(caller, 1)
    quotas.give_back_tokens(ANYBODY, 1)


def test_tenants_do_not_share_an_account_and_operators_have_none(quotas: Quotas) -> None:
    quotas.count_request(tenant("a", requests_per_minute=1), 1)
    quotas.count_request(tenant("b", requests_per_minute=1), 1)
    for _ in range(1000):
        quotas.count_request(ANYBODY, 1000)
        quotas.count_tokens(ANYBODY, 1000)
        quotas.count_request(tenant("free"), 1000)


def test_the_keys_of_a_tenant_share_its_account(quotas: Quotas) -> None:
    caller = tenant(requests_per_minute=1)
    quotas.count_request(caller, 1)
    with pytest.raises(QuotaExceeded):
        quotas.count_request(replace(caller, key_id="second"), 1)


def test_a_limit_that_changes_keeps_what_was_used_up(quotas: Quotas, clock: Clock) -> None:
    quotas.count_request(tenant(requests_per_minute=10), 1)
    for _ in range(3):
        quotas.count_request(tenant(requests_per_minute=3), 1)
    with pytest.raises(QuotaExceeded):
        quotas.count_request(tenant(requests_per_minute=3), 1)
    with pytest.raises(QuotaExceeded):
        quotas.count_request(tenant(requests_per_minute=600), 1)
    clock.now += 0.1
    quotas.count_request(tenant(requests_per_minute=600), 1)
    quotas.count_request(tenant(), 1)


def test_so_many_texts_may_be_in_flight_and_not_one_more(quotas: Quotas) -> None:
    caller = tenant(max_waiting=3)
    with quotas.in_flight(caller, 2), quotas.in_flight(caller, 1):
        with pytest.raises(QuotaExceeded) as raised, quotas.in_flight(caller, 1):
            pass
        assert raised.value.retry_after_s == 1
        with quotas.in_flight(tenant("other", max_waiting=3), 3):
            pass
    with pytest.raises(TooManyInputs, match="has 4 texts; tenant `acme` may have 3"), quotas.in_flight(caller, 4):
        pass  # it is not asked to come again: it would never be let in
    with pytest.raises(ZeroDivisionError), quotas.in_flight(caller, 3):
        raise ZeroDivisionError
    with quotas.in_flight(caller, 3):
        pass


@given(
    per_minute=st.integers(1, 100_000),
    asked=st.lists(st.tuples(st.integers(1, 2_000), st.floats(0, 100)), min_size=1, max_size=30),
)
def test_whoever_waits_as_long_as_they_were_told_is_let_in(per_minute: int, asked: list[tuple[int, float]]) -> None:
    clock = Clock()
    quotas = Quotas(Metrics(0), clock)
    caller = tenant(texts_per_minute=per_minute)
    for num_texts, pause in asked:
        try:
            quotas.count_request(caller, num_texts)
        except QuotaExceeded as error:
            clock.now += error.retry_after_s or 0
            quotas.count_request(caller, num_texts)
        clock.now += pause


@given(per_minute=st.integers(1, 600), pauses=st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_no_more_than_a_burst_and_the_rate_is_ever_let_in(per_minute: int, pauses: list[float]) -> None:
    clock = Clock()
    quotas = Quotas(Metrics(0), clock)
    num_taken = 0
    for pause in pauses:
        clock.now += pause
        try:
            quotas.count_request(tenant(requests_per_minute=per_minute), 1)
            num_taken += 1
        except QuotaExceeded:
            pass
    assert num_taken <= per_minute + (clock.now - 1000) * per_minute / 60 + 0.01


# -- over HTTP --


@pytest.fixture(scope="module")
def service(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = make_adapters(tmp_path_factory.mktemp("metered"), bert_base, ["one", "two"])
    with Service(settings_for(root, bert_base)) as service:
        yield service


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> Keys:
    return Keys(write_limits(tmp_path / "keys.json"), clock)


def write_limits(path: Path, **acme: int) -> Path:
    return write_keys(
        path,
        entry(ACME, "classify", tenant="acme"),
        entry(OTHER, "classify", tenant="other"),
        entry(OPERATOR, "classify", "metrics"),
        acme={"adapters": ["*"], **acme},
        other={"adapters": ["*"]},
    )


@pytest.fixture
def client(service: Service, keys: Keys, clock: Clock) -> Iterator[TestClient]:
    desk = replace(service.desk, quotas=OwnAccounts(Quotas(service.metrics, clock)))
    with TestClient(create_app(desk, 100_000, Gate(keys))) as client:
        yield client


def ask(client: TestClient, key: str, num_texts: int = 1) -> Any:
    body = {"adapter_id": "one", "inputs": ["word1 word2"] * num_texts}  # 4 tokens a text
    return client.post("/v1/classify", json=body, headers=bearer(key))


@pytest.mark.parametrize(
    ("limits", "num_texts", "num_taken", "retry_after_s"),
    [
        ({"requests_per_minute": 2}, 3, 2, 30),
        ({"texts_per_minute": 6}, 3, 2, 30),
        ({"tokens_per_minute": 24}, 3, 2, 30),
    ],
)
def test_a_tenant_over_its_quota_is_429_until_retry_after_and_others_are_answered(
    client: TestClient,
    tmp_path: Path,
    clock: Clock,
    limits: dict[str, int],
    num_texts: int,
    num_taken: int,
    retry_after_s: int,
) -> None:
    write_limits(tmp_path / "keys.json", **limits)
    clock.now += CHECK_EVERY_S
    before = refused(client)
    for _ in range(num_taken):
        assert ask(client, ACME, num_texts).status_code == 200
    response = ask(client, ACME, num_texts)
    assert response.status_code == 429
    assert response.json()["code"] == "quota_exceeded"
    assert response.headers["retry-after"] == str(retry_after_s)
    assert ask(client, OTHER, num_texts).status_code == 200
    assert ask(client, OPERATOR, num_texts).status_code == 200
    assert refused(client) == before + 1
    clock.now += retry_after_s
    assert ask(client, ACME, num_texts).status_code == 200


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full"),
        EngineStopped("it has stopped"),
        LoadFailed("no room"),
        AdapterNotFound("it was removed"),  # of which there are several attempts
    ],
    ids=lambda error: type(error).__name__,
)
def test_texts_that_were_not_classified_cost_no_tokens(
    client: TestClient,
    tmp_path: Path,
    clock: Clock,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    error: AdaptermuxError,
) -> None:
    write_limits(tmp_path / "keys.json", tokens_per_minute=8)
    clock.now += CHECK_EVERY_S

    def refuse(job: Job) -> Future[Answer]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(service.engine, "submit", refuse)
        for _ in range(3):
            assert ask(client, ACME).status_code == error.status
    assert [ask(client, ACME).status_code for _ in range(3)] == [200, 200, 429]


def test_a_line_that_waits_for_room_pays_for_its_tokens_once(
    client: TestClient, tmp_path: Path, clock: Clock, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_limits(tmp_path / "keys.json", tokens_per_minute=8)
    clock.now += CHECK_EVERY_S
    submit, full = service.engine.submit, [Overloaded("full")]

    def crowded(job: Job) -> Future[Answer]:
        if full:
            raise full.pop()
        return submit(job)

    monkeypatch.setattr(service.engine, "submit", crowded)
    line = {"adapter_id": "one", "inputs": "word1 word2"}
    response = client.post(batch.PATH, content=json.dumps(line), headers=bearer(ACME))
    assert "predictions" in response.json()
    assert [ask(client, ACME).status_code for _ in range(2)] == [200, 429]


def refused(client: TestClient) -> float:
    text = client.get("/metrics", headers=bearer(OPERATOR)).text
    lines = [line for line in text.splitlines() if line.startswith('adaptermux_tenant_refused_total{tenant="acme"}')]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_a_fan_out_is_one_request_and_counts_every_text_for_every_adapter(
    client: TestClient, tmp_path: Path, clock: Clock
) -> None:
    write_limits(tmp_path / "keys.json", requests_per_minute=1, texts_per_minute=6)
    clock.now += CHECK_EVERY_S
    body = {"adapters": ["one", "two"], "inputs": ["word1"] * 3}
    assert client.post("/v1/classify/fanout", json=body, headers=bearer(ACME)).status_code == 200
    assert client.post("/v1/classify/fanout", json=body, headers=bearer(ACME)).headers["retry-after"] == "60"


def test_texts_in_flight_are_capped_over_requests_and_free_again_afterwards(
    client: TestClient, tmp_path: Path, clock: Clock, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_limits(tmp_path / "keys.json", max_waiting=4)
    clock.now += CHECK_EVERY_S
    entered, leave = threading.Event(), threading.Event()
    embeddings: Any = service.base.backbone.embeddings
    embed = embeddings.forward

    def slow(**inputs: Any) -> Any:
        entered.set()
        assert leave.wait(30)
        return embed(**inputs)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(embeddings, "forward", slow)
        busy = pool.submit(ask, client, ACME, 3)
        assert entered.wait(30)
        response = ask(client, ACME, 2)
        waiting = pool.submit(ask, client, ACME, 1)
        until(lambda: service.engine.health().num_waiting == 1)
        leave.set()
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert busy.result(30).status_code == waiting.result(30).status_code == 200
    assert ask(client, ACME, 4).status_code == 200
    assert ask(client, ACME, 5).status_code == 422, "which no waiting helps"
