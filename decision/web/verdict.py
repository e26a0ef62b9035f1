"""What is answered, with its figures; or that nothing can be, and what would have to be measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from decision.answer import Answer, Option, describe, money, percent, points, size
from decision.fit import Gap
from decision.web.markup import Markup, code, element, joined, prose
from decision.web.query import api_link, command

HEADS = {
    "use": "Use",
    "literature": "From literature, not measured here",
    "undecided": "Undecided",
    "infeasible": "Nothing meets the limits",
}


def in_a_line(answer: Answer) -> str:
    """For those who hear the page change."""
    if answer.choice is None:
        return f"{HEADS[answer.verdict]}: {answer.because}"
    accuracy = f", accuracy {percent(answer.choice.accuracy)}" if answer.choice.accuracy else ""
    return f"{HEADS[answer.verdict]}: {answer.choice.candidate}{accuracy}, confidence {answer.confidence}"


def verdict(answer: Answer) -> Markup:
    """The card at the top."""
    if answer.choice is not None:
        said = code(answer.choice.candidate)
    else:
        said = Markup("Measure this" if answer.verdict == "undecided" else "Loosen a limit")
    sure = element("span", f"confidence: {answer.confidence}", class_=f"chip {answer.confidence}")
    parts = [
        element("p", element("span", HEADS[answer.verdict], class_="eyebrow"), sure, class_="row between"),
        element("h2", said, class_="answered", id="answer-title"),
        element("p", prose(answer.because)),
    ]
    if answer.choice is not None:
        parts += [
            element(
                "p", "Confidence is ", answer.confidence, ": ", prose(answer.confidence_because), ".", class_="hint"
            ),
            element("dl", *_facts(answer.choice, answer.yardstick), class_="facts"),
            _settings(answer),
        ]
    if answer.verdict == "undecided":
        parts.append(gaps(answer.missing))
    parts += _others(answer)
    return element("section", *parts, class_=f"panel verdict {answer.verdict}", aria_labelledby="answer-title")


def gaps(missing: Sequence[Gap]) -> Markup:
    """What the evidence does not say, and the commands that would."""
    return _commanded((prose(gap.what), gap.command) for gap in missing)


def missing(answer: Answer) -> Markup:
    """Beside an answer that stands without it."""
    if not answer.missing or answer.verdict == "undecided":
        return Markup("")
    title = element("h2", "Not measured")
    return element("section", title, gaps(answer.missing), class_="panel")


def rests_on(answer: Answer) -> Markup:
    """The rows, and the same answer elsewhere."""
    same = element(
        "p", "The same answer: ", element("a", "JSON", href=api_link(answer.question)), ", or ", class_="hint"
    )
    told = [(joined([describe(basis)]), getattr(basis, "command", "")) for basis in answer.basis]
    rows = _commanded(told) if told else element("p", "no rows", class_="hint")
    return element(
        "section", element("h2", "Rests on"), rows, same, element("pre", command(answer.question)), class_="panel"
    )


def _commanded(told: Iterable[tuple[Markup, str]]) -> Markup:
    """Each command once, beneath all that it makes or would make."""
    by_command: dict[str, list[Markup]] = {}
    for text, by in told:
        by_command.setdefault(by, []).append(element("p", text))
    lines = [element("li", *texts, element("pre", by) if by else "") for by, texts in by_command.items()]
    return element("ul", *lines, class_="gaps")


def _facts(option: Option, yardstick: str | None) -> Iterator[Markup]:
    if option.accuracy is not None:
        lost = f"{points(option.difference)} to {yardstick}" if option.difference and yardstick else ""
        if option.candidate == yardstick:
            lost = "the others are judged by it"
        yield _fact("Expected accuracy", percent(option.accuracy), lost)
    yield _fact("Adapter", size(option.adapter_bytes), "weights and head")
    if option.texts_per_s is not None and option.p95_ms is not None:
        yield _fact(
            "A replica takes", f"{option.texts_per_s:,.0f} texts/s", f"p95 {option.p95_ms:,.0f} ms, {option.dtype}"
        )
    if option.memory_gib is not None:
        yield _fact("Memory of a replica", f"{option.memory_gib:.3g} GiB", "base and hot adapters")
    if option.cost is not None:
        cost = option.cost
        count = f"{cost.replicas:,} replica{'s' if cost.replicas != 1 else ''}"
        yield _fact("Replicas", count, f"{100 * cost.utilisation:.0f} % busy")
        each = (
            f"{money(cost.per_million_requests, cost.currency)} a million requests, "
            f"{money(cost.per_adapter_month, cost.currency)} an adapter"
        )
        yield _fact("A month", money(cost.per_month, cost.currency), each)


def _fact(name: str, value: str, more: str) -> Markup:
    told = element("dd", element("strong", value), element("span", more, class_="hint"))
    return element("div", element("dt", name), told)


def _settings(answer: Answer) -> Markup:
    flat: dict[str, object] = {}
    for name, value in answer.settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    used = {name: value for name, value in flat.items() if value is not None and value is not False}
    shown = [
        joined(
            [element("span", name, class_="hint"), " ", code(f"{value:g}" if isinstance(value, float) else str(value))]
        )
        for name, value in used.items()
    ]
    where = "where to begin" if answer.verdict == "literature" else "as measured"
    lines = [element("li", one) for one in shown]
    return element("div", element("h3", f"Settings, {where}"), element("ul", *lines, class_="settings"))


def _others(answer: Answer) -> list[Markup]:
    parts = []
    if answer.runner_up is not None:
        other = answer.runner_up
        told = [size(other.adapter_bytes)]
        if other.accuracy is not None:
            told.insert(0, percent(other.accuracy))
        if other.cost is not None:
            told.append(f"{money(other.cost.per_month, other.cost.currency)} a month")
        because = f": {answer.runner_up_because} ({', '.join(told)})."
        parts.append(element("p", element("span", "Runner-up ", class_="hint"), code(other.candidate), because))
    if answer.full is not None:
        text = f"{points(answer.full)} to {answer.yardstick}, with a copy of the base for every task."
        parts.append(element("p", element("span", "Fine-tuning all weights ", class_="hint"), text))
    return [element("div", *parts, class_="others")] if parts else []
