"""Which PEFT method to use, for programs: the answers of `adaptermux-decide`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from decision.answer import Answer
from decision.question import Question
from server.advice import Advice
from server.desk import Needs
from server.routes.responses import ALWAYS, problems

router = APIRouter(tags=["decide"], dependencies=[Depends(Needs("classify"))])
ANSWERING = ALWAYS | problems(s503="The evidence cannot be read, or too many ask; see `Retry-After`")


class MovedQuestion(Question):
    """A question of which one input moves."""

    model_config = ConfigDict(populate_by_name=True)

    move: str = Field(max_length=64)
    """Name of the input: train_rows, adapters, hot, num_labels, max_tokens, rps, p95_ms, memory_gib and so on."""
    low: float | None = Field(None, alias="from", gt=0)
    """Its lowest value; a thirtieth of the given one if left out."""
    high: float | None = Field(None, alias="to", gt=0)
    """Its highest value; thirty times the given one if left out."""

    @property
    def question(self) -> Question:
        return Question.model_construct(**{name: getattr(self, name) for name in Question.model_fields})


class AnswerSpan(BaseModel):
    """Values of the input over which the answer is the same."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    low: float = Field(alias="from")
    high: float = Field(alias="to")
    first: Answer
    """At its lower end."""
    last: Answer
    """At its upper end."""


class Sensitivity(BaseModel):
    """How the answer changes as one input moves."""

    move: str
    spans: list[AnswerSpan]


@router.get("/v1/decision", response_model=Answer, responses=ANSWERING)
async def decide(question: Annotated[Question, Query()], request: Request) -> Response:
    """Which PEFT method to use for a task, a number of rows and what serving must hold to: the same bytes as
    `adaptermux-decide ask --json` prints.
    """
    return _json(await advice(request).ask(lambda adviser: adviser.answer_json(question)))


@router.get("/v1/decision/sensitivity", response_model=Sensitivity, responses=ANSWERING)
async def move(asked: Annotated[MovedQuestion, Query()], request: Request) -> Response:
    """How that answer changes as one input moves; `spans` are the lines of `adaptermux-decide sensitivity --json`."""
    values: tuple[Any, ...] = asked.question, asked.move, asked.low, asked.high
    return _json(await advice(request).ask(lambda adviser: adviser.sensitivity_json(*values)))


def advice(request: Request) -> Advice:
    found: Advice = request.app.state.advice
    return found


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
