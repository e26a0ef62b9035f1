"""How the answer changes as one input moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from decision.answer import Answer
from decision.errors import QuestionError
from decision.question import Question, ask
from decision.tree import Tree

REACH = 30.0
"""How many times smaller and larger than asked an input is made."""
STEPS_PER_SIDE = 20
FINE = 1.01
"""A place between numbers that are no whole ones is found to this factor."""
WHOLE = ("train_rows", "adapters", "hot", "num_labels", "max_tokens")
MOVING = (*WHOLE, "rps", "p95_ms", "memory_gib", "swaps_per_hour", "mean_tokens")


@dataclass(frozen=True, slots=True)
class Span:
    """Values of the input over which the answer is the same; answers: at both ends."""

    start: float
    end: float
    first: Answer
    last: Answer

    def record(self) -> dict[str, Any]:
        """As JSON."""
        answers = {"first": self.first.model_dump(mode="json"), "last": self.last.model_dump(mode="json")}
        return {"from": self.start, "to": self.end} | answers

    def text(self, field: str) -> str:
        """In a line."""
        verdict, name = outcome(self.first)
        sure = " to ".join(dict.fromkeys((self.first.confidence, self.last.confidence)))
        shown = verdict if name is None else f"{name} ({sure})"
        ends = [answer.choice for answer in (self.first, self.last)]
        accuracies = [f"{100 * one.accuracy.value:.1f}" for one in ends if one is not None and one.accuracy is not None]
        costs = [f"{one.cost.per_month:,.0f}" for one in ends if one is not None and one.cost is not None]
        parts = [shown]
        if accuracies:
            parts.append(f"accuracy {' to '.join(dict.fromkeys(accuracies))} %")
        if costs and self.first.choice is not None and self.first.choice.cost is not None:
            parts.append(f"{' to '.join(dict.fromkeys(costs))} {self.first.choice.cost.currency} a month")
        return f"{field} {_number(self.start)} to {_number(self.end)}: {', '.join(parts)}"


def outcome(answer: Answer) -> tuple[str, str | None]:
    """What has to change for an answer to count as another one: the verdict, or the candidate."""
    return answer.verdict, None if answer.choice is None else answer.choice.candidate


def sensitivity(
    tree: Tree, question: Question, field: str, low: float | None = None, high: float | None = None
) -> list[Span]:
    """Move one input from low to high, by default far to both sides of what is asked. Raises QuestionError.

    What changes and changes back between two of its steps is not seen.
    """

    def answer_at(value: float) -> Answer:
        return tree.answer(moved(question, field, value))

    return list(_spans(values_of(question, field, low, high), answer_at, field in WHOLE))


def values_of(question: Question, field: str, low: float | None = None, high: float | None = None) -> list[float]:
    """The steps that an input moves in, from low to high. Raises QuestionError."""
    if field not in MOVING:
        raise QuestionError(f"`{field}` cannot be moved; it must be one of {', '.join(MOVING)}", "move")
    given = getattr(question, field)
    if not given and (low is None or high is None):
        text = f"`{field}` is not given, so say from where to where it moves, with --from and --to"
        raise QuestionError(text, field)
    start = _allowed(question, field, given / REACH if low is None else low)
    end = _allowed(question, field, given * REACH if high is None else high)
    if not 0 < start < end:
        text = f"`{field}` cannot move from {start:g} to {end:g}; the first must be lower, and above 0"
        raise QuestionError(text, field)
    return _grid(field, start, end)


def moved(question: Question, field: str, value: float) -> Question:
    """The question with another value of one input."""
    values: dict[str, Any] = question.model_dump()
    return ask(values | {field: int(value) if field in WHOLE else value})


def _spans(values: list[float], answer_at: Callable[[float], Answer], is_whole: bool) -> Iterator[Span]:
    start, first = values[0], answer_at(values[0])
    low, low_answer = start, first
    for value in values[1:]:
        answer = answer_at(value)
        while outcome(low_answer) != outcome(answer):
            high, high_answer = value, answer
            while (middle := _between(low, high, is_whole)) is not None:
                found = answer_at(middle)
                if outcome(found) == outcome(low_answer):
                    low, low_answer = middle, found
                else:
                    high, high_answer = middle, found
            yield Span(start, low, first, low_answer)
            start, first = high, high_answer
            low, low_answer = high, high_answer
        low, low_answer = value, answer
    yield Span(start, low, first, low_answer)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _between(low: float, high: float, is_whole: bool) -> float | None:
    """A value between the two, None where they are near enough."""
    if is_whole:
        return float(int(low + high) // 2) if high - low > 1 else None
    return (low * high) ** 0.5 if high / low > FINE else None


def _grid(field: str, start: float, end: float) -> list[float]:
    steps = 2 * STEPS_PER_SIDE
    values = [start * (end / start) ** (step / steps) for step in range(steps + 1)]
    values[-1] = end
    return sorted({float(round(value)) for value in values}) if field in WHOLE else values


def _allowed(question: Question, field: str, value: float) -> float:
    """As near to it as the question's own bounds allow."""
    if field == "adapters" and question.hot is not None:
        value = max(value, question.hot)
    if field == "hot":
        value = min(value, question.adapters)
    if field == "num_labels":
        value = max(value, 2)
    if field == "mean_tokens" and question.max_tokens is not None:
        value = min(value, question.max_tokens)
    if field == "max_tokens" and question.mean_tokens is not None:
        value = max(value, ceil(question.mean_tokens))
    return max(value, 1.0) if field in WHOLE else value
