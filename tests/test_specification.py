"""The API does what its description says: requests drawn from the whole of it, right ones and wrong ones."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.app import create_app
from server.base_model import BaseModel
from server.service import Service
from server.settings import Settings
from tests.seeded import make_adapter, peft_configs
from tests.test_adapter_folder import add_manifest

NUM_CASES = 20
MAX_BODY_BYTES = 100_000
KNOWN = ("reviews", "stars")
CHECKS = (status_code_conformance, content_type_conformance, response_schema_conformance)
NAMES = ("adapter_id", "reference", "model")


@schemathesis.serializer("application/x-ndjson")
def lines(ctx: Any, value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def schema(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("served")
    for name, num_labels in zip(KNOWN, (3, 1), strict=True):
        make_adapter(root / name, bert_base.folder, peft_configs("bert")["lora-qv"], num_labels, seed=0)
        add_manifest(root / name, bert_base, problem_type="regression" if num_labels == 1 else "single_label")
    served = Settings(adapters=root, base=str(bert_base.folder), device="cpu", dtype="float32", threads=1, look_s=0)
    with Service(served) as service:
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service.desk, MAX_BODY_BYTES))


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_answer_is_a_5xx_or_undocumented(schema: Any, mode: Any) -> None:
    seen: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        try:
            cases = operation.as_strategy(generation_mode=mode)
            _ask(f"{operation.method.upper()} {operation.path}", cases, seen, wrong)
        except (schemathesis.errors.InvalidSchema, Unsatisfiable):  # nothing about it can be wrong
            continue
    assert not wrong, "\n".join(map(str, wrong.items()))
    if mode is schemathesis.GenerationMode.POSITIVE:
        for operation in (
            "POST /v1/classify",
            "POST /v1/classify/fanout",
            "GET /v1/adapters/{adapter_id}",
            "POST /tei/{adapter_id}/predict",
        ):
            assert seen[f"{operation} 200"], f"{operation} was never answered: {seen}"


def _ask(name: str, cases: Any, seen: Counter[str], wrong: dict[str, str]) -> None:
    """Send what is drawn of one operation, and note what is wrong with the answers."""

    @settings(
        max_examples=NUM_CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Any) -> None:
        _aim(case, seen.total())
        response = case.call()
        seen[f"{name} {response.status_code}"] += 1
        if response.status_code >= 500:
            wrong[f"{name} {response.status_code}"] = f"{response.text[:300]} to {str(case.body)[:300]}"
        try:
            case.validate_response(response, checks=CHECKS)
        except (BaseExceptionGroup, AssertionError) as error:
            text = "".join(traceback.format_exception_only(error))
            wrong[f"{name} {response.status_code}: {text[:80]}"] = text[:600]

    ask()


def _aim(case: Any, number: int) -> None:
    """Let half of the requests name adapters that exist, and none be too hurried to be answered."""
    chosen = KNOWN[number // 2 % 2] if number % 2 else None
    if case.headers:
        case.headers.pop("X-Request-Timeout-Ms", None)
    for place in (case.path_parameters, case.body, case.headers):
        if chosen is None or not isinstance(place, dict):
            continue
        for name in (*NAMES, "X-Adapter-Id"):
            if name in place:
                place[name] = chosen
        if "adapters" in place:
            place["adapters"] = list(KNOWN)
