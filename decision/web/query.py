"""A question as the query of an address, and what of it the page adds for itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from decision.errors import QuestionError
from decision.question import Question, ask
from decision.sensitivity import MOVING

FIRST_ASKED: Mapping[str, str] = {
    "train_rows": "800", "adapters": "500", "hot": "50", "rps": "200", "p95_ms": "200", "memory_gib": "8",
}  # fmt: skip
"""What is asked by a page that is opened without a question, of the first kind of task."""
MOVE = "move"
"""The parameter that says which input the sensitivity is drawn along."""


@dataclass(frozen=True, slots=True)
class Asked:
    """values: what the controls show; a question, or why there is none."""

    values: Mapping[str, str]
    move: str
    question: Question | None = None
    error: QuestionError | None = None


def read(query: Mapping[str, str], first_task_type: str) -> Asked:
    """A page's query. What a form leaves empty is not given."""
    given = {name: value for name, value in query.items() if value.strip()}
    move = given.pop(MOVE, MOVING[0])
    values = {"task_type": first_task_type, "train_rows": FIRST_ASKED["train_rows"], **(given or FIRST_ASKED)}
    try:
        if move not in MOVING:
            raise QuestionError(f"`{MOVE}` is `{move}`, it must be one of {', '.join(MOVING)}", MOVE)
        return Asked(values, move, question=ask(values))
    except QuestionError as error:
        return Asked(values, move if move in MOVING else MOVING[0], error=error)


def values_of(question: Question) -> dict[str, str]:
    """What is given, and not the default: as a form or a command would say it."""
    return {
        name: shown(value)
        for name, value in question
        if value != Question.model_fields[name].default and value is not None
    }


def link(question: Question, move: str, **changes: object) -> str:
    """The address of the same page with other values."""
    values: dict[str, Any] = question.model_dump() | changes
    changed = Question.model_construct(**values)
    return f"?{urlencode(values_of(changed) | ({MOVE: move} if move != MOVING[0] else {}))}"


def api_link(question: Question) -> str:
    """Of the same answer as JSON."""
    return f"v1/decision?{urlencode(values_of(question))}"


def command(question: Question) -> str:
    """That answers the same."""
    parts = ["adaptermux-decide", "ask"]
    for name, value in values_of(question).items():
        parts.append(f"--{name.replace('_', '-')}")
        parts += [] if Question.model_fields[name].annotation is bool else [value]
    return shlex.join(parts)


def shown(value: object) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)
