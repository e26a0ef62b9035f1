"""How a request is put to a service, and how its answer is read. Other services have files of their own elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loadtest.samples import NO_TIMINGS, Timings
from loadtest.workload import Ask

_TIMING = re.compile(r"(\w+);dur=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Answered:
    """error: None if the answer was right; else a short name of what was not. num_tokens: 0 where nobody tells."""

    error: str | None
    num_tokens: int = 0
    timings: Timings = NO_TIMINGS


class Wire(Protocol):
    """One service's way of being asked."""

    path: str

    def body(self, adapter_id: str, ask: Ask) -> str:
        """JSON."""

    def read(self, adapter_id: str, ask: Ask, status: int, content: bytes, server_timing: str | None) -> Answered:
        """Judge an answer that came, whatever its status."""


class Native:
    """`POST /v1/classify`."""

    path = "/v1/classify"

    def body(self, adapter_id: str, ask: Ask) -> str:
        inputs: Sequence[str] | str = ask.texts[0] if len(ask.texts) == 1 else ask.texts
        return json.dumps({"adapter_id": adapter_id, "inputs": inputs})

    def read(self, adapter_id: str, ask: Ask, status: int, content: bytes, server_timing: str | None) -> Answered:
        answer = parse(content)
        if status != 200:
            code = answer.get("code")
            return Answered(f"{status} {code}" if isinstance(code, str) else str(status))
        predictions = answer.get("predictions")
        if answer.get("adapter_id") != adapter_id or not isinstance(predictions, list):
            return Answered("wrong answer")
        if len(predictions) != len(ask.texts) or not all("label" in one for one in predictions):
            return Answered("wrong answer")
        usage = answer.get("usage") or {}
        return Answered(None, usage.get("tokens", 0), _timings(server_timing))


def parse(content: bytes) -> dict[str, Any]:
    """The object in a body; empty if there is none."""
    try:
        answer = json.loads(content)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _timings(header: str | None) -> Timings:
    times = {name: float(value) for name, value in _TIMING.findall(header or "")}
    return Timings(*(times.get(name, float("nan")) for name in ("queue", "compute", "tokenize", "total")))
