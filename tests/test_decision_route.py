"""`GET /v1/decision` and the page without a browser: what they answer, to whom, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient

from decision import command
from decision.errors import DecisionError
from decision.question import Question
from decision.rows import QualityRow
from decision.web.adviser import AGAIN_S, Adviser
from server.advice import MOST_WAITING, Advice
from server.app import create_app
from server.base_model import BaseModel
from server.errors import Overloaded
from server.gate import Gate
from server.keys import Keys
from server.service import Service
from tests import planted
from tests.serving import Clock, bearer, entry, make_adapters, settings_for, write_keys
from tests.test_decision_quality import twin

ASKED: dict[str, Any] = {"task_type": "topic", "train_rows": 500}
MARKUP = "<img src=x onerror=hacked()>"
READER, WATCHER = "reader-1", "watcher-1"


@pytest.fixture(scope="module")
def service(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    adapters = make_adapters(tmp_path_factory.mktemp("adapters"), bert_base, ["one"])
    with Service(settings_for(adapters, bert_base)) as service:
        yield service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.small(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(scope="module")
def client(service: Service, folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(service.desk, 1000, advice=Advice(folder))) as client:
        yield client


@pytest.fixture(scope="module")
def keyed(service: Service, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = Keys(write_keys(path, entry(READER, "classify"), entry(WATCHER, "metrics")))
    with TestClient(create_app(service.desk, 1000, Gate(keys), Advice(folder))) as client:
        yield client


def flags(values: dict[str, Any]) -> list[str]:
    """What the command is given for what the route is."""
    found = []
    for name, value in values.items():
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"adapters": 500, "hot": 50, "rps": 200, "p95_ms": 50, "memory_gib": 8, "device": "cpu"},
        {"locked_base": True, "serving": "merged", "swaps_per_hour": 0.5},
        {"task_type": "generation", "base_parameters": 7e9},
        {"base": "bert-base", "num_labels": 12, "mean_tokens": 60},
        {"p95_ms": 0.01},
    ],
)
def test_the_answer_is_that_of_the_command_byte_for_byte(
    client: TestClient, folder: Path, capsysbinary: pytest.CaptureFixture[bytes], more: dict[str, Any]
) -> None:
    asked = ASKED | more
    response = client.get("/v1/decision", params=asked)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert command.main(["ask", "--evidence", str(folder), *flags(asked), "--json"]) == 0
    assert response.content == capsysbinary.readouterr().out


def test_a_sensitivity_has_the_spans_of_the_command(
    client: TestClient, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ASKED | {"move": "p95_ms", "from": 5, "to": 500}
    answered = client.get("/v1/decision/sensitivity", params=asked).json()
    assert command.main(["sensitivity", "--evidence", str(folder), *flags(asked), "--json"]) == 0
    assert answered["spans"] == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answered["spans"]) > 1
    assert answered["move"] == "p95_ms"


@pytest.mark.parametrize(
    ("more", "field", "message"),
    [
        ({"train_rows": "few"}, "train_rows", "valid integer"),
        ({"train_rows": ""}, "train_rows", "valid integer"),
        ({"p95_ms": "0"}, "p95_ms", "greater than 0"),
        ({"rps": "nan"}, "rps", "finite number"),
        ({"device": "tpu"}, "device", "'cpu' or 'gpu'"),
        ({"hot": "3"}, "hot", "`hot` is 3, more than the 1 `adapters`"),
        ({"base": "gpt"}, "base", "it must be one of minilm, bert-base"),
        ({"task_type": "poetry"}, "task_type", "it must be one of topic, pair, "),
        ({"mean_tokens": "30", "max_tokens": "20"}, "mean_tokens", "more than `max_tokens`, 20"),
        ({"adaptors": "3"}, "adaptors", "not permitted"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(
    client: TestClient, more: dict[str, Any], field: str, message: str
) -> None:
    response = client.get("/v1/decision", params=ASKED | more)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["code"] == "invalid_input"
    assert [one["field"] for one in told["errors"]] == [field]
    assert message in told["detail"]


def test_what_is_left_out_is_named(client: TestClient) -> None:
    told = client.get("/v1/decision").json()
    assert [one["field"] for one in told["errors"]] == ["task_type", "train_rows"]


@pytest.mark.parametrize(
    ("more", "field", "message"),
    [
        ({}, "move", "Field required"),
        ({"move": "device"}, "move", "`device` cannot be moved; it must be one of train_rows"),
        ({"move": "p95_ms"}, "p95_ms", "is not given"),
        ({"move": "rps", "from": 9, "to": 3}, "rps", "cannot move from 9 to 3"),
        ({"move": "rps", "to": "inf"}, "to", "finite number"),
        ({"move": "rps", "to": 1e300}, "rps", "less than or equal to"),
    ],
)
def test_what_cannot_be_moved_is_named(client: TestClient, more: dict[str, Any], field: str, message: str) -> None:
    response = client.get("/v1/decision/sensitivity", params=ASKED | more)
    assert response.status_code == 422
    assert [one["field"] for one in response.json()["errors"]] == [field]
    assert message in response.json()["detail"]


def test_every_input_is_described(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    operation = described["paths"]["/v1/decision"]["get"]
    assert {one["name"] for one in operation["parameters"]} == set(Question.model_fields)
    assert all(one["description"] for one in operation["parameters"])
    assert {one["name"] for one in operation["parameters"] if one["required"]} == {"task_type", "train_rows"}
    moved = described["paths"]["/v1/decision/sensitivity"]["get"]
    assert {one["name"] for one in moved["parameters"]} == {*Question.model_fields, "move", "from", "to"}
    assert set(operation["responses"]) == {"200", "401", "403", "422", "503"}


# The page


def test_the_page_answers_what_its_address_asks(client: TestClient) -> None:
    shown = client.get("/decision", params=ASKED | {"p95_ms": "", "move": "rps"})
    assert shown.status_code == 200
    choice = client.get("/v1/decision", params=ASKED).json()["choice"]["candidate"]
    assert re.search(rf'class="answered"[^>]*><bdi class="id">{choice}</bdi>', shown.text)
    assert 'name="train_rows" value="500"' in shown.text
    assert "Along requests" in shown.text


def test_a_page_without_a_question_asks_one_of_the_first_kind_of_task(client: TestClient) -> None:
    shown = client.get("/decision")
    assert shown.status_code == 200
    assert '<option value="topic" selected>' in shown.text
    assert 'name="hot" value="50"' in shown.text


def test_a_page_that_cannot_be_asked_says_so_at_the_field(client: TestClient) -> None:
    for name, value in (("train_rows", "few"), ("hot", "3"), ("task_type", "poetry"), ("nothing", "1"), ("move", "x")):
        shown = client.get("/decision", params=ASKED | {name: value})
        assert shown.status_code == 422
        assert "This cannot be asked" in shown.text
        if name in Question.model_fields:
            assert f'id="wrong-{name}"' in shown.text
            assert f'aria-describedby="wrong-{name}"' in shown.text


def test_the_page_may_send_its_form_and_run_nothing_but_its_own_files(client: TestClient) -> None:
    shown = client.get("/decision", params=ASKED)
    policy = dict(rule.strip().split(" ", 1) for rule in shown.headers["content-security-policy"].split(";"))
    assert policy["form-action"] == "'self'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["default-src"] == "'none'"
    assert shown.headers["cache-control"] == "no-store", "what it shows may be meant for one key"
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script>", shown.text)
    for target in re.findall(r'(?:src|href|action)="([^"#?]+)', shown.text):
        assert not target.startswith(("/", "http")), "a proxy may serve the page below a path"


def test_names_in_rows_never_become_markup(service: Service, tmp_path: Path) -> None:
    rows = [row for row in planted.quality((100, 500)) if isinstance(row, QualityRow) and row.task == "trec"]
    rows += twin(rows, "lora-all-8", MARKUP, "lora", 2_000)
    hostile = [row.model_copy(update={"task": MARKUP}) for row in rows]
    planted.write(tmp_path / "rows", [*hostile, *planted.serving()], {})
    questions: list[dict[str, str]] = [
        {},
        {"task_type": MARKUP, "train_rows": "500"},
        {"task_type": MARKUP, "train_rows": MARKUP},
    ]
    with TestClient(create_app(service.desk, 1000, advice=Advice(tmp_path / "rows"))) as client:
        for asked in questions:
            shown = client.get("/decision", params=asked).text
            assert "<img" not in shown
            assert "&lt;img" in shown
    assert command.main(["render", "--evidence", str(tmp_path / "rows"), "--output", str(tmp_path / "a.html")]) == 0
    assert "<img" not in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_the_pages_can_be_switched_off_and_the_answers_stay(service: Service, folder: Path) -> None:
    with TestClient(create_app(service.desk, 1000, Gate(has_pages=False), Advice(folder))) as client:
        assert client.get("/decision").status_code == 404
        assert client.get("/v1/decision", params=ASKED).status_code == 200


# Keys


def test_answers_need_a_key_that_may_classify(keyed: TestClient) -> None:
    for path in ("/v1/decision", "/v1/decision/sensitivity"):
        asked = ASKED | ({"move": "train_rows"} if path.endswith("sensitivity") else {})
        assert keyed.get(path, params=asked).status_code == 401
        assert keyed.get(path, params=asked, headers=bearer(WATCHER)).status_code == 403
        assert keyed.get(path, params=asked, headers=bearer(READER)).status_code == 200


def test_without_a_key_the_page_is_the_same_whatever_it_is_asked(keyed: TestClient) -> None:
    asked: list[dict[str, Any]] = [{}, ASKED, {"task_type": "poetry"}]
    tried: list[dict[str, str]] = [{}, bearer("unknown-1"), bearer(WATCHER)]
    shown = {keyed.get("/decision", params=one, headers=key).text for one in asked for key in tried}
    assert len(shown) == 1
    assert "This server wants a key" in shown.pop()
    assert 'class="answered"' in keyed.get("/decision", params=ASKED, headers=bearer(READER)).text


# Evidence


def test_without_evidence_the_server_is_ready_and_the_reason_is_told(service: Service, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    for folder, reason in ((tmp_path / "none", "is no folder"), (tmp_path, "line 1")):
        with TestClient(create_app(service.desk, 1000, advice=Advice(folder))) as client:
            assert client.get("/health/ready").status_code == 200
            response = client.get("/v1/decision", params=ASKED)
            assert (response.status_code, response.json()["code"]) == (503, "evidence_failed")
            assert reason in response.json()["detail"]
            assert response.headers["retry-after"] == "30"
            shown = client.get("/decision")
            assert shown.status_code == 503
            assert reason in shown.text


def test_a_folder_without_rows_still_answers_from_literature(service: Service, tmp_path: Path) -> None:
    with TestClient(create_app(service.desk, 1000, advice=Advice(tmp_path))) as client:
        assert client.get("/v1/decision", params=ASKED | {"task_type": "long_text"}).json()["verdict"] == "literature"
        assert client.get("/decision").status_code == 200


def test_evidence_is_read_when_first_asked_for_and_once(service: Service, folder: Path, tmp_path: Path) -> None:
    late = tmp_path / "late"
    with TestClient(create_app(service.desk, 1000, advice=Advice(late))) as client:
        shutil.copytree(folder, late)
        first = client.get("/v1/decision", params=ASKED)
        shutil.rmtree(late)
        assert first.status_code == 200
        assert client.get("/v1/decision", params=ASKED).content == first.content
        assert client.get("/v1/decision", params=ASKED | {"rps": 3}).status_code == 200


def test_evidence_that_was_mended_is_read_after_a_while(folder: Path, tmp_path: Path) -> None:
    clock = Clock()
    adviser = Adviser(tmp_path / "late", None, clock)
    with pytest.raises(DecisionError):
        adviser.tree()
    shutil.copytree(folder, tmp_path / "late")
    clock.now += AGAIN_S - 1
    with pytest.raises(DecisionError):
        adviser.tree()
    clock.now += 1
    assert adviser.tree().task_types()[0] == "topic"


def test_a_flood_of_questions_is_refused_and_the_loop_goes_on(folder: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(adviser: Adviser) -> str:
        begun.set()
        assert go_on.wait(30)
        return adviser.tree().task_types()[0]

    async def flood() -> list[str]:
        advice, answers = Advice(folder), list[str]()

        async def ask() -> None:
            answers.append(await advice.ask(slow))

        async with anyio.create_task_group() as group:
            for _ in range(MOST_WAITING):
                group.start_soon(ask)
            await anyio.to_thread.run_sync(begun.wait)  # the loop is free while one works and the others wait
            with pytest.raises(Overloaded, match="32 questions"):
                await advice.ask(slow)
            go_on.set()
        return answers

    assert anyio.run(flood) == ["topic"] * MOST_WAITING
