"""The HTTP side in processes of its own: the wire between them, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from server import errors
from server.app import create_app
from server.base_model import BaseModel
from server.callers import Caller, Limits
from server.desk import Desk
from server.errors import (
    AdaptermuxError,
    AdapterNotFound,
    DeadlineExceeded,
    EngineStopped,
    InvalidInput,
    Overloaded,
    QuotaExceeded,
)
from server.exchange import AGAIN_S, Exchange
from server.fronts import Fronts
from server.jobs import Job
from server.link import Link
from server.messages import Hello, Returned
from server.processes import EARLY_S, Child
from server.quotas import Accounts
from server.record import Target
from server.remote import Remote
from server.service import Service
from server.settings import Settings
from tests.serving import make_adapters, settings_for, until

LIMIT_S = 120
NUM_HTTP = 2
RETRY_S = 0.2
ACME = Caller("key", "acme", limits=Limits(requests_per_minute=3, tokens_per_minute=10, max_waiting=2))


@pytest.fixture(scope="module")
def adapters(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(tmp_path_factory.mktemp("adapters"), bert_base, ["one", "two"])


# -- the wire, within one process --


@dataclass(frozen=True)
class Wired:
    """A service, and what two HTTP processes would have of it. Its engine begins when it is started."""

    service: Service
    fronts: Fronts
    desks: list[Desk]
    listener: socket.socket
    settings: Settings


@pytest.fixture
def wired(adapters: Path, bert_base: BaseModel, tmp_path: Path) -> Iterator[Wired]:
    settings = settings_for(adapters, bert_base, max_waiting=8, state=str(tmp_path / "state"), look_s=0)
    with ExitStack() as stack:
        service = Service(settings)
        stack.callback(service.lifecycle.close)
        stack.callback(service.engine.close)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "engine"))
        listener.listen()
        fronts = Fronts(
            service.desk, service.metrics, service.quotas, service.store.tiers, service.base.folder, listener
        )
        fronts.start()
        stack.callback(lambda: until(lambda: len(fronts) == 0))
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        desks = []
        for _ in range(NUM_HTTP):
            remote = Remote(tmp_path / "engine")
            desks.append(remote.desk(settings))
            stack.callback(remote.exchange.close)
        yield Wired(service, fronts, desks, listener, settings)


def job(service: Service, deadline: float | None = None, adapter_id: str = "one") -> Job:
    card = service.catalog.resolve(adapter_id)
    return Job(adapter_id, card.version, (2, 7, 8, 3, 9, 3), (0, 0, 0, 0, 1, 1), deadline)


MADE_OF: dict[type[AdaptermuxError], tuple[Any, ...]] = {
    errors.MethodNotAllowed: ("it does not go", "PUT"),
    errors.InputRefused: (3, "it does not go"),
    errors.QuotaExceeded: ("it does not go", 7),
    errors.Overloaded: ("it does not go", 7),
    errors.InvalidInput: ("inputs[3]", "it does not go", [("top_k", "nor this")]),
    errors.TooManyInputs: ("inputs", "it does not go"),
    errors.TextTooLong: ("inputs[3]", "it does not go"),
}


def test_every_error_comes_back_as_the_same_class_with_the_same_fields() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AdaptermuxError)]
    assert len(kinds) > 40
    for kind in kinds:
        error = kind(*MADE_OF.get(kind, ("it does not go",)))
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), str(found), vars(found)) == (kind, str(error), vars(error))


def test_answers_are_those_of_the_one_process_bit_for_bit(wired: Wired) -> None:
    wired.service.engine.start()
    inputs = ["word1 word2", {"text": "word3", "text_pair": "word4 word5"}]
    found = []
    for desk in (wired.service.desk, *wired.desks):
        with TestClient(create_app(desk, 100_000)) as client:
            answers: list[Any] = [client.get("/v1/adapters").json(), client.get("/v1/base").json()]
            for name in ("one", "two", "missing"):
                body = {"adapter_id": name, "inputs": inputs, "output": "logits"}
                answer = client.post("/v1/classify", json=body).json()
                answers.append(answer.get("predictions", answer.get("detail")))
            found.append(answers)
    assert found[0] == found[1] == found[2]
    assert "there is no adapter 'missing'" in found[0][-1]


def test_what_is_cancelled_or_late_is_never_computed(wired: Wired) -> None:
    engine, deadline = wired.desks[0].engine, time.monotonic() + 0.2
    due, late, left = (engine.submit(job(wired.service, by)) for by in (None, deadline, None))
    until(lambda: wired.service.engine.health().num_waiting == 3)
    assert left.cancel()
    last = engine.submit(job(wired.service))
    until(lambda: wired.service.engine.health().num_waiting == 4 and time.monotonic() > deadline)
    wired.service.engine.start()
    assert due.result(LIMIT_S) == replace(last.result(LIMIT_S), queue_ms=due.result().queue_ms)
    with pytest.raises(DeadlineExceeded):
        late.result(LIMIT_S)
    assert metric(wired.desks[1], "adaptermux_batch_texts_sum") == 2


def test_more_than_may_wait_is_refused_with_the_time_to_come_again(wired: Wired) -> None:
    engine = wired.desks[0].engine
    taken = [engine.submit(job(wired.service)) for _ in range(8)]
    with pytest.raises(Overloaded) as raised:
        engine.submit(job(wired.service)).result(LIMIT_S)
    assert raised.value.retry_after_s >= 1
    wired.service.engine.start()
    assert len({answer.result(LIMIT_S).logits for answer in taken}) == 1


def test_what_is_not_known_to_the_engine_is_not_found(wired: Wired) -> None:
    wired.service.engine.start()
    gone = replace(job(wired.service), version="0" * 12)
    with pytest.raises(AdapterNotFound):
        wired.desks[0].engine.submit(gone).result(LIMIT_S)


def test_a_change_is_seen_everywhere_once_it_is_answered_and_what_is_refused_says_why(wired: Wired) -> None:
    first, second = wired.desks
    for index in range(20):
        changer, reader = (first, second) if index % 2 else (second, first)
        changer.lifecycle.put("one", None, [f"tag-{index}"])
        assert reader.catalog.find("one").tags == (f"tag-{index}",)
    assert first.catalog.all() == second.catalog.all() == wired.service.catalog.all()
    with pytest.raises(InvalidInput) as raised:
        first.lifecycle.set_alias("one", (Target("0" * 12),))
    assert raised.value.field == "version"
    with pytest.raises(AdapterNotFound):
        second.lifecycle.remove("missing")


def test_all_count_into_the_same_metrics(wired: Wired) -> None:
    for desk in wired.desks:
        desk.metrics.request_answered("one", "ok", 0.01)
        desk.metrics.texts_classified(2, 20, 0.001, 0.002)
        desk.metrics.predicted("one", ["yes", "no"])
        desk.metrics.refused("head_too_large")
        desk.metrics.tenant_classified("acme", 2, 20)
        desk.metrics.watch_keys(lambda: 5, lambda: True)
    for name, expected in (
        ('adaptermux_requests_total{adapter="one",code="ok"}', 2),
        ('adaptermux_request_seconds_count{adapter="one"}', 2),
        ("adaptermux_texts_total", 4),
        ('adaptermux_predictions_total{adapter="one",label="yes"}', 2),
        ('adaptermux_refused_total{code="head_too_large"}', 2),
        ('adaptermux_tenant_tokens_total{tenant="acme"}', 40),
        ("adaptermux_keys", 5),
    ):
        until(lambda name=name, expected=expected: metric(wired.desks[1], name) == expected)  # type: ignore[misc]


def test_a_tenant_has_one_account_wherever_they_ask(wired: Wired) -> None:
    async def ask() -> None:
        first, second = (desk.quotas for desk in wired.desks)
        for accounts in (first, second, first):
            await accounts.count_request(ACME, 1)
        with pytest.raises(QuotaExceeded) as raised:
            await second.count_request(ACME, 1)
        assert raised.value.retry_after_s == 20
        await first.count_tokens(ACME, 10)
        first.give_back_tokens(ACME, 10)
        first.give_back_tokens(Caller("operator"), 10)
        await first.count_tokens(ACME, 10)  # it comes behind what was given back
        with pytest.raises(QuotaExceeded):
            await second.count_tokens(ACME, 10)
        async with first.in_flight(ACME, 1), second.in_flight(ACME, 1):
            with pytest.raises(QuotaExceeded, match="may have 2 texts in flight, not 2 and 1 more"):
                async with second.in_flight(ACME, 1):
                    pass
        deadline = time.monotonic() + LIMIT_S
        while not await _can_fly(second, 2):  # that the first one's has landed may be told a little later
            assert time.monotonic() < deadline

    asyncio.run(ask())


def test_what_flies_for_a_process_that_ends_does_not_count_any_more(wired: Wired) -> None:
    async def fly() -> None:
        async with wired.desks[0].quotas.in_flight(ACME, 2):
            assert not await _can_fly(wired.desks[1].quotas, 2)
            wired.fronts.close()
            deadline = time.monotonic() + LIMIT_S
            while not await _can_fly(wired.desks[1].quotas, 2):
                assert time.monotonic() < deadline

    asyncio.run(fly())


def test_a_link_that_breaks_ends_what_waits_and_is_made_again(wired: Wired) -> None:
    desk = wired.desks[0]
    waiting = desk.engine.submit(job(wired.service))
    until(lambda: wired.service.engine.health().num_waiting == 1)
    wired.fronts.close()
    with pytest.raises(EngineStopped) as raised:
        waiting.result(LIMIT_S)
    assert raised.value.retry_after_s is not None
    desk.metrics.refused("while_there_is_none")
    wired.service.engine.start()
    until(lambda: desk.engine.health().alive)
    assert len(desk.engine.submit(job(wired.service)).result(LIMIT_S).logits) == 3
    until(lambda: metric(desk, 'adaptermux_refused_total{code="while_there_is_none"}') == 1)


def test_a_process_ends_although_the_engine_it_has_found_again_never_greets_it(wired: Wired, tmp_path: Path) -> None:
    address = tmp_path / "silent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        exchange = Exchange(address, lambda message: None)
        starting = threading.Thread(target=exchange.start, daemon=True)
        starting.start()
        greeting = Link(listener.accept()[0])
        greeting.send(Hello(wired.service.desk.base, str(tmp_path), []))
        starting.join(LIMIT_S)
        greeting.close()
        silent, _ = listener.accept()
        with silent:
            closing = threading.Thread(target=exchange.close, daemon=True)
            closing.start()
            closing.join(LIMIT_S)
            assert not closing.is_alive()


def test_what_cannot_be_sent_ends_the_link_and_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    ends = [Link(one) for one in socket.socketpair()]
    ends[0].send(Returned(1, threading.Lock()))
    assert list(ends[1].read()) == []
    for one in ends:
        one.close()
    assert json.loads(capfd.readouterr().err)["event"] == "link_crashed"


def test_links_that_end_before_they_are_greeted_are_made_again_after_a_pause(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "engine"))
        listener.listen()
        exchange = Exchange(tmp_path / "engine", lambda message: None)
        threading.Thread(target=exchange.start, daemon=True).start()
        began = time.monotonic()
        for _ in range(4):
            listener.accept()[0].close()
        assert time.monotonic() - began >= 3 * AGAIN_S
    exchange.close()


def test_an_http_process_whose_engine_has_another_base_model_now_asks_to_be_started_again(wired: Wired) -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        base = wired.service.desk.base.model_copy(update={"fingerprint": "0" * 64})
        wired.fronts.desk = replace(wired.service.desk, base=base)
        wired.fronts.close()
        until(lambda: bool(asked))  # each of them asks, and a signal that is pending comes once
    finally:
        until(lambda: all(desk.engine.health().alive for desk in wired.desks))
        signal.signal(signal.SIGTERM, before)


async def _can_fly(accounts: Accounts, num_texts: int) -> bool:
    try:
        async with accounts.in_flight(ACME, num_texts):
            return True
    except (EngineStopped, QuotaExceeded):
        return False


def test_a_process_that_ends_again_and_again_is_given_up() -> None:
    child = Child("engine", lambda: 1, since=time.monotonic())
    assert [child.pause_s() for _ in range(7)] == [0, 1, 3, 7, 15, 31, None]
    child.since -= EARLY_S
    assert child.pause_s() == 0


def metric(desk: Desk, name: str) -> float:
    lines = asyncio.run(_text(desk)).decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


async def _text(desk: Desk) -> bytes:
    return await desk.metrics.text()


# -- real processes --


@dataclass
class Server:
    """A server of several processes."""

    process: subprocess.Popen[str]
    url: str

    def children(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if child.status() != "zombie"]

    def engine(self) -> psutil.Process:
        """The one that has torch loaded."""
        return max(self.children(), key=lambda child: child.memory_info().rss)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """On a connection of its own, so that any of the HTTP processes may answer."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
                return response.status, json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                is_told = error.code != 503 or "Retry-After" in error.headers or path.startswith("/health")
                return error.code if is_told else -1, json.loads(error.read())

    def classify(self, reference: str) -> tuple[int, Any]:
        """Status, version, and scores as far as they do not depend on what else was in the batch."""
        status, answer = self.ask("POST", "/v1/classify", {"adapter_id": reference, "inputs": "word1 word2"})
        scores = [(one["label"], pytest.approx(one["score"], abs=1e-4)) for one in _scores(answer)]
        return status, (answer.get("version"), scores)

    def is_ready(self) -> bool:
        return self.ask("GET", "/health/ready")[0] == 200

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=LIMIT_S) as response:
            lines = response.read().decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def _scores(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [score for prediction in answer.get("predictions", []) for score in prediction["scores"]]


@contextmanager
def serving(adapters: Path, base: BaseModel, state: Path, *flags: object) -> Iterator[Server]:
    """One of two HTTP processes, unless the flags say otherwise; told to stop in the end."""
    fixed: list[object] = [
        "--adapters", adapters, "--base", base.folder, "--state", state, "--source-root", adapters, "--port", 0,
        "--device", "cpu", "--dtype", "float32", "--threads", 1, "--kernels", "off", "--max-wait-s", 600,
        "--http-processes", NUM_HTTP,
    ]  # fmt: skip
    command = [sys.executable, "-m", "server", *map(str, [*fixed, *flags])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            events = (json.loads(line) for line in process.stderr)
            url = next(event["url"] for event in events if event["event"] == "server_started")
            reader = threading.Thread(target=process.stderr.read, daemon=True)  # so that nothing is held up by it
            reader.start()
            yield Server(process, url)
        finally:
            process.terminate()
            process.wait(LIMIT_S)
            reader.join(LIMIT_S)


@pytest.fixture(scope="module")
def server(adapters: Path, bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(adapters, bert_base, tmp_path_factory.mktemp("state")) as server:
        yield server
        children = server.children()
        server.process.terminate()
        assert server.process.wait(LIMIT_S) == 0
        assert not any(child.is_running() for child in children)


@contextmanager
def asking(server: Server, reference: str) -> Iterator[list[tuple[int, Any]]]:
    """What four clients are answered meanwhile; a connection that breaks is a status of 0."""
    found: list[tuple[int, Any]] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            try:
                found.append(server.classify(reference))
                is_over.wait(RETRY_S if found[-1][0] == 503 else 0)  # a client that is sent away lets others work
            except (OSError, http.client.HTTPException) as error:
                found.append((0, str(error)))

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(ask) for _ in range(4)]
        try:
            until(lambda: len(found) > 8)
            yield found
        finally:
            is_over.set()
        for one in asked:
            one.result(LIMIT_S)


def test_an_engine_process_that_is_killed_under_load_is_started_again(server: Server, adapters: Path) -> None:
    put = server.ask("PUT", "/v1/adapters/three", {"source": f"file:{adapters / 'one'}", "tags": ["kept"]})
    assert put[0] == 200
    right = server.classify("three")
    assert right[0] == 200
    with asking(server, "three") as found:
        server.engine().kill()
        until(lambda: not server.is_ready())
        num_before = len(found)
        assert server.ask("GET", "/health/live")[0] == 200
        until(lambda: server.metric("adaptermux_engine_alive") == 0)  # whichever process tells
        until(server.is_ready, LIMIT_S)
        until(lambda: found[-1][0] == 200 and len(found) > num_before)
    until(lambda: server.metric("adaptermux_engine_alive") == 1)  # whichever process tells
    assert {status for status, _ in found} == {200, 503}
    assert all(one == right for one in found if one[0] == 200)
    assert server.ask("GET", "/v1/adapters/three") == put
    assert len(server.children()) == NUM_HTTP + 1


def test_an_http_process_that_is_killed_is_started_again_and_the_other_goes_on(server: Server) -> None:
    right, before = server.classify("one"), server.children()
    victim = next(child for child in before if child != server.engine())
    victim.kill()
    victim.wait(LIMIT_S)
    assert server.classify("one") == right
    until(lambda: len(server.children()) == len(before), LIMIT_S)
    assert victim not in server.children()
    assert server.classify("one") == right


def test_an_alias_that_flips_under_load_loses_nothing_and_is_seen_at_once_everywhere(
    server: Server, adapters: Path
) -> None:
    versions = [
        server.ask("PUT", "/v1/adapters/flipped", {"source": f"file:{adapters / name}"})[1]["version"]
        for name in ("one", "two")
    ]
    with asking(server, "flipped") as found:
        for index in range(20):
            version = versions[index % 2]
            assert server.ask("PUT", "/v1/adapters/flipped/alias", {"version": version})[0] == 200
            assert {server.classify("flipped")[1][0] for _ in range(4)} == {version}
    assert {status for status, _ in found} == {200}
    assert {answer[0] for _, answer in found} == set(versions)


def test_requests_are_counted_once_whichever_process_answers(server: Server) -> None:
    name = 'adaptermux_requests_total{adapter="two",code="ok"}'
    before = server.metric(name)
    for _ in range(20):
        server.classify("two")
    until(lambda: server.metric(name) >= before + 20)  # counts of one process may come after a question of the other
    assert server.metric(name) == before + 20


def test_every_process_decides_alike(server: Server) -> None:
    answers = [server.ask("GET", "/v1/decision?task_type=generation&train_rows=500") for _ in range(8)]
    assert {status for status, _ in answers} == {200}
    assert all(answer == answers[0] for answer in answers)


def test_a_frozen_engine_is_replaced_and_a_supervisor_that_is_killed_leaves_nobody_behind(
    adapters: Path, bert_base: BaseModel, tmp_path: Path
) -> None:
    with serving(adapters, bert_base, tmp_path / "state", "--stall-s", 3) as server:
        right, frozen = server.classify("one"), server.engine()
        frozen.suspend()
        assert server.classify("one") == (503, (None, []))  # it waits until the process is given up
        until(lambda: frozen not in server.children())
        until(
            lambda: server.classify("one") == right, LIMIT_S
        )  # one process may have found the new one before the other
        children = server.children()
        assert len(children) == NUM_HTTP + 1
        server.process.kill()
        server.process.wait(LIMIT_S)
        until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def test_sigterm_under_load_answers_what_is_in_flight(adapters: Path, bert_base: BaseModel, tmp_path: Path) -> None:
    texts = [" ".join(["word1"] * 300)] * 100
    flags = ("--http-processes", 1, "--drain-s", 60)
    with serving(adapters, bert_base, tmp_path / "state", *flags) as server, ThreadPoolExecutor(3) as clients:
        body = {"adapter_id": "one", "inputs": texts}
        answers = [clients.submit(server.ask, "POST", "/v1/classify", body) for _ in range(3)]
        until(lambda: server.metric("adaptermux_waiting_texts") > 2 * len(texts))
        server.process.terminate()
        for answer in answers:
            status, found = answer.result(LIMIT_S)
            assert (status, len(found.get("predictions", []))) == (200, len(texts))
        assert server.process.wait(LIMIT_S) == 0


def test_a_base_model_that_is_not_there_ends_the_start_with_one_sentence(adapters: Path) -> None:
    command = [sys.executable, "-m", "server", "--adapters", str(adapters), "--base", "./nowhere", "--port", "0"]
    done = subprocess.run([*command, "--http-processes", "1"], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
