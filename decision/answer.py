"""What a question is answered: a record for machines, and its text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from decision.bootstrap import Interval
from decision.comparison import Verdict as QualityVerdict
from decision.cost import Cost
from decision.fit import Gap
from decision.question import Question

Verdict = Literal["use", "literature", "undecided", "infeasible"]
Confidence = Literal["high", "medium", "low", "literature", "none"]
KIB, GIB = 2**10, 2**30


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Share(_Record):
    """A share with the ends of its 95 % interval; 0.01 is one point."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(interval: Interval) -> Share:
        return Share(value=interval.value, low=interval.low, high=interval.high)


class QualityBasis(_Record):
    """Runs of training."""

    kind: Literal["quality"] = "quality"
    task: str
    candidates: tuple[str, ...]
    train_rows: tuple[int, ...]
    seeds: tuple[int, ...]
    commits: tuple[str, ...]
    command: str


class ServingBasis(_Record):
    """Rows of a load test."""

    kind: Literal["serving"] = "serving"
    scenario: str
    case: str
    commits: tuple[str, ...]
    command: str


class PublishedBasis(_Record):
    """Published work. keys: of the bibliography."""

    kind: Literal["published"] = "published"
    says: str
    keys: tuple[str, ...]


Basis = Annotated[QualityBasis | ServingBasis | PublishedBasis, Field(discriminator="kind")]


class Step(_Record):
    """One node of the tree on the way."""

    asks: str
    answer: str
    because: str
    basis: tuple[Basis, ...] = ()


class Option(_Record):
    """One candidate, as it stands to this question."""

    candidate: str
    method: str
    accuracy: Share | None
    difference: Share | None
    """Less the answer's yardstick."""
    quality: QualityVerdict | None
    """None: not measured here."""
    serving: Literal["meets", "misses", "not measured"]
    why: str
    """What is missed, or not measured."""
    adapter_bytes: int
    memory_gib: float | None
    """Of one replica."""
    texts_per_s: float | None
    """What one replica takes within the limits."""
    p95_ms: float | None
    """At that rate."""
    dtype: str | None
    cost: Cost | None


class Answer(_Record):
    question: Question
    verdict: Verdict
    because: str
    choice: Option | None
    """None where the verdict is neither `use` nor `literature`."""
    settings: dict[str, Any]
    """Of the training that the choice was measured with; from literature: where to begin."""
    confidence: Confidence
    confidence_because: str
    runner_up: Option | None
    runner_up_because: str
    full: Share | None
    """What fine-tuning all weights, a copy of the base a task, would bring beyond the yardstick."""
    yardstick: str | None = None
    """The candidate that the others are judged against; None where nothing was measured."""
    yardstick_because: str = ""
    options: tuple[Option, ...]
    path: tuple[Step, ...]
    basis: tuple[Basis, ...]
    missing: tuple[Gap, ...]

    def text(self) -> str:
        """For a terminal."""
        return "\n".join(_lines(self)) + "\n"


def percent(share: Share) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def points(share: Share | Interval) -> str:
    return f"{100 * share.value:+.1f} points [{100 * share.low:+.1f}, {100 * share.high:+.1f}]"


def size(num_bytes: int) -> str:
    """Of an adapter."""
    return f"{num_bytes / KIB:,.0f} KiB" if num_bytes < 10 * KIB * KIB else f"{num_bytes / KIB / KIB:,.0f} MiB"


def money(amount: float, currency: str) -> str:
    return f"{amount:,.2f} {currency}" if amount >= 1 else f"{amount:.3g} {currency}"


def _lines(answer: Answer) -> Iterator[str]:
    head = {
        "use": f"use {answer.choice.candidate}" if answer.choice else "",
        "literature": f"from literature: {answer.choice.candidate}" if answer.choice else "",
        "undecided": "undecided",
        "infeasible": "nothing meets the limits",
    }[answer.verdict]
    yield head.upper() if answer.choice is None else head
    yield f"  {answer.because}"
    yield f"  confidence: {answer.confidence}; {answer.confidence_because}"
    if answer.choice is not None:
        yield ""
        yield from _option(answer.choice, answer.yardstick)
        yield f"  settings    {_settings(answer.settings)}"
    if answer.full is not None:
        yield f"  full        fine-tuning all weights, a copy a task: {points(answer.full)} to `{answer.yardstick}`"
    if answer.yardstick is not None:
        yield f"  judged by   `{answer.yardstick}`, {answer.yardstick_because}"
    if answer.runner_up is not None:
        yield ""
        yield f"runner-up: {answer.runner_up.candidate}; {answer.runner_up_because}"
        yield from _option(answer.runner_up, answer.yardstick)
    yield ""
    yield "path"
    for number, step in enumerate(answer.path, 1):
        yield f"  {number}. {step.asks} {step.answer}" + (f" ({step.because})" if step.because else "")
    if answer.missing:
        yield ""
        yield "not measured"
        for gap in answer.missing:
            yield f"  - {gap.what}"
            if gap.command:
                yield f"      {gap.command}"
    yield ""
    yield "rests on"
    for basis in answer.basis:
        yield f"  - {describe(basis)}"


def _option(option: Option, yardstick: str | None) -> Iterator[str]:
    if option.accuracy is not None:
        lost = f"; {points(option.difference)} to `{yardstick}`" if option.difference is not None else ""
        lost = "" if option.candidate == yardstick else lost
        yield f"  accuracy    {percent(option.accuracy)}{lost}"
    yield f"  adapter     {size(option.adapter_bytes)}"
    if option.texts_per_s is not None and option.p95_ms is not None:
        yield f"  a replica   {option.texts_per_s:,.0f} texts/s with p95 {option.p95_ms:,.0f} ms ({option.dtype})"
    if option.memory_gib is not None:
        yield f"  memory      {option.memory_gib:.3g} GiB a replica"
    if option.cost is not None:
        cost = option.cost
        yield (
            f"  cost        {_count(cost.replicas, 'replica')}; {money(cost.per_month, cost.currency)} a month, "
            f"{money(cost.per_million_requests, cost.currency)} a million requests, "
            f"{money(cost.per_adapter_month, cost.currency)} an adapter and month"
        )
    if option.why:
        yield f"  serving     {option.serving}: {option.why}"


def _settings(settings: dict[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    used = {name: value for name, value in flat.items() if value is not None and value is not False}
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in used.items()
    )


def describe(basis: QualityBasis | ServingBasis | PublishedBasis) -> str:
    """The rows, in a line."""
    match basis:
        case QualityBasis():
            sizes = " and ".join(f"{size:,}" for size in basis.train_rows)
            named = ", ".join(basis.candidates)
            return f"{basis.task}, {sizes} rows, seeds {_numbers(basis.seeds)}: {named} ({', '.join(basis.commits)})"
        case ServingBasis():
            return f"scenario {basis.scenario}, {basis.case} ({', '.join(basis.commits)})"
        case PublishedBasis():
            return f"{basis.says} [{', '.join(basis.keys)}]"


def _numbers(values: Sequence[int]) -> str:
    is_run = len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1))
    return f"{values[0]}-{values[-1]}" if is_run else ", ".join(map(str, values))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
