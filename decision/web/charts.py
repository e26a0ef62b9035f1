"""The three charts: accuracy against bytes, a replica's rate against hot adapters, the answer along an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decision.answer import KIB, Answer, Option, Share, percent, size
from decision.errors import QuestionError
from decision.question import Question
from decision.sensitivity import Span, moved, outcome, sensitivity, values_of
from decision.tree import Tree
from decision.web.inputs import NUMBERS, label_of, with_unit
from decision.web.markup import Markup, code, element, joined
from decision.web.plot import LETTER, Plot, drawing, even_axis, log_axis
from decision.web.query import link

WIDTH, HEIGHT = 400.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 390.0, 14.0, 222.0
LEAST_BYTES = KIB
"""What holds less is drawn there."""
BAND = 20.0
"""Height of the stripe of answers."""


def kind_of(option: Option, answer: Answer) -> str:
    """How a candidate is drawn."""
    if answer.choice is not None and option.candidate == answer.choice.candidate:
        return "choice"
    if answer.runner_up is not None and option.candidate == answer.runner_up.candidate:
        return "runner"
    return {"not worse": "equal", "worse": "worse", "undecided": "unsure", None: "unsure"}[option.quality]


def accuracy_by_bytes(answer: Answer) -> Markup:
    """Every candidate with its interval."""
    found = [(option, option.accuracy) for option in answer.options if option.accuracy is not None]
    if not found:
        return _figure("Accuracy and size", _nothing("No accuracy was measured for this."))
    sizes = [max(LEAST_BYTES, option.adapter_bytes) / KIB for option, _ in found]
    plot = Plot(
        WIDTH, HEIGHT,
        log_axis(sizes, LEFT, RIGHT, brief),
        even_axis((100 * end for _, one in found for end in (one.low, one.high)), BOTTOM, TOP, brief),
    )  # fmt: skip
    plot.grid()
    ranked = sorted(zip(found, sizes, strict=True), key=lambda one: kind_of(one[0][0], answer) in ("choice", "runner"))
    for (option, share), held in ranked:
        tells = f"{option.candidate}: {percent(share)}, {size(option.adapter_bytes)}"
        plot.mark(held, 100 * share.value, kind_of(option, answer), tells, (100 * share.low, 100 * share.high))
    for (option, share), held in reversed(ranked):
        plot.name(held, 100 * share.value, option.candidate, "strong" if option == answer.choice else "")
    in_words = "; ".join(f"{one.candidate} {percent(share)} at {size(one.adapter_bytes)}" for one, share in found)
    kinds = dict.fromkeys(kind_of(option, answer) for option, _ in found)
    keys = [(name, text) for name, text in KEYS.items() if name in kinds]
    return _figure(
        "Accuracy and size", plot.svg(f"Accuracy against the size of an adapter. {in_words}"), _keys(keys),
        "%, with 95 % intervals, against KiB of one adapter",
    )  # fmt: skip


KEYS = {
    "choice": "choice",
    "runner": "runner-up",
    "equal": "not worse",
    "unsure": "undecided",
    "worse": "worse",
}


def by_hot(tree: Tree, answer: Answer) -> Markup:
    """What one replica takes within the limits, and with which latency, at every number of hot adapters measured."""
    question = answer.question
    points = tree.serving(question.device, question.shape.id).base_points()
    counts = sorted({point.num_hot for point in points if point.num_hot} | {question.num_hot})
    title = "A replica, by hot adapters"
    names = [one.candidate for one in (answer.choice, answer.runner_up) if one is not None]
    names = names or [one.candidate for one in answer.options if one.texts_per_s is not None][:2]
    if not points:
        return _figure(title, _nothing(f"Nothing was measured of {question.base_name} on a {question.device}."))
    about, limits = "highest rate measured within the limits", {}
    if not names:
        about, limits = "without your limits, which nothing meets", {"p95_ms": None, "memory_gib": None}
        names = [one.candidate for one in answer.options if one.quality == "not worse"][:2]
    answers = [
        tree.answer(question.model_copy(update={"hot": count, "adapters": max(count, question.adapters), **limits}))
        for count in counts
    ]
    rates = {name: [_option(one, name) for one in answers] for name in names}
    x = log_axis(counts, LEFT, RIGHT, brief)
    upper = Plot(WIDTH, HEIGHT, x, even_axis(_of(rates, "texts_per_s"), 112, TOP, brief, has_zero=True))
    asked = [question.p95_ms] if question.p95_ms is not None else []
    lower = Plot(WIDTH, HEIGHT, x, even_axis([*_of(rates, "p95_ms"), *asked], BOTTOM, 142, brief, has_zero=True))
    for plot, field in ((upper, "texts_per_s"), (lower, "p95_ms")):
        plot.grid_up()
        plot.upright(question.num_hot, "now")
        for index, name in enumerate(names):
            line = [(count, getattr(one, field, None)) for count, one in zip(counts, rates[name], strict=True)]
            plot.line(line, ("first", "second")[index])
            for count, value in line:
                if value is not None:
                    tells = f"{name}, {count:,} hot: {brief(value)} {'texts/s' if field == 'texts_per_s' else 'ms'}"
                    plot.mark(count, value, ("first", "second")[index], tells)
    if question.p95_ms is not None:
        y = lower.y.at(question.p95_ms)
        lower.parts.append(element("line", class_="limit", x1=LEFT, x2=RIGHT, y1=y, y2=y))
    lower.grid_across()
    lower.write(RIGHT, 138, "p95, ms", anchor="end")
    upper.write(RIGHT, 10, "texts/s", anchor="end")
    in_words = "; ".join(
        f"{name}, {count:,} hot: " + (f"{brief(one.texts_per_s)} texts/s with p95 {brief(one.p95_ms or 0)} ms"
                                      if one is not None and one.texts_per_s is not None else "not within the limits")
        for name in names for count, one in zip(counts, rates[name], strict=True)
    )  # fmt: skip
    return _figure(
        title, drawing(WIDTH, HEIGHT, [*upper.parts, *lower.parts], f"Rate and latency of a replica. {in_words}"),
        _keys(list(zip(("first", "second"), names, strict=False))), about,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Along:
    """How the answer changes as one input moves over the range of its slider."""

    field: str
    spans: Sequence[Span]
    answers: Sequence[tuple[float, Answer]]


def along(tree: Tree, question: Question, field: str) -> Along | QuestionError:
    """Between all thresholds of the answer."""
    number, given = NUMBERS[field], getattr(question, field) or 0
    low, high = min(number.low, given or number.low), max(number.high, given)
    try:
        spans = sensitivity(tree, question, field, low, high)
        places = {*values_of(question, field, low, high), *(end for span in spans for end in (span.start, span.end))}
        return Along(field, spans, [(one, tree.answer(moved(question, field, one))) for one in sorted(places)])
    except QuestionError as error:
        return error


def sensitivity_chart(found: Along | QuestionError, question: Question, field: str) -> Markup:
    """The answer, its accuracy and what it costs."""
    label = label_of(field)
    title = f"Along {label if label[1].isdigit() else label[0].lower() + label[1:]}"
    if isinstance(found, QuestionError):
        return _figure(title, _nothing(str(found)))
    x = log_axis((value for value, _ in found.answers), LEFT, RIGHT, brief)
    shares = [(value, answer.choice.accuracy if answer.choice else None) for value, answer in found.answers]
    costs = [(value, answer.choice.cost if answer.choice else None) for value, answer in found.answers]
    known = [(value, share) for value, share in shares if share is not None]
    upper_y = even_axis((100 * end for _, one in known for end in (one.low, one.high)), 124, 52, brief)
    upper = Plot(WIDTH, HEIGHT, x, upper_y)
    lower_y = even_axis((one.per_month for _, one in costs if one is not None), BOTTOM, 158, brief, has_zero=True)
    lower = Plot(WIDTH, HEIGHT, x, lower_y)
    stripe = _stripe(found, x.at)
    given = getattr(question, field)
    if given:
        upper.upright(given, "now")
        lower.upright(given, "now")
    if known:
        upper.grid_up()
        for run in _runs(shares):
            upper.ribbon([(value, 100 * one.low, 100 * one.high) for value, one in run], "ribbon")
        upper.line([(value, None if one is None else 100 * one.value) for value, one in shares], "first")
    upper.write(RIGHT, 48, "accuracy, %", anchor="end")
    currency = next((one.currency for _, one in costs if one is not None), None)
    if currency is not None:
        lower.grid_up()
        lower.line([(value, None if one is None else one.per_month) for value, one in costs], "second")
    lower.write(RIGHT, 154, f"{currency or 'cost'} a month", anchor="end")
    lower.grid_across()
    in_words = "; ".join(span.text(field) for span in found.spans)
    parts = [*stripe, *upper.parts, *lower.parts]
    drawn = drawing(WIDTH, HEIGHT, parts, f"The answer along {field}. {in_words}")
    return _figure(title, joined([drawn, _span_list(found, question)]), about="where the answer changes")


def _span_list(found: Along, question: Question) -> Markup:
    """The same in words; each leads to where it begins."""
    lines: list[Markup] = []
    for span in found.spans:
        start, end = (with_unit(found.field, brief(value)) for value in (span.start, span.end))
        given = getattr(question, found.field)
        is_here = bool(given) and span.start <= given <= span.end
        verdict, name = outcome(span.first)
        to = link(question, found.field, **{found.field: span.start})
        reach = element("a", f"{start} to {end}", href=to, id=f"span-{len(lines)}")
        lines.append(
            element(
                "li",
                reach,
                " ",
                code(name) if name else verdict,
                aria_current="true" if is_here else None,
                class_="here" if is_here else None,
            )
        )
    return element("ol", *lines, class_="spans")


def _stripe(found: Along, at: Callable[[float], float]) -> list[Markup]:
    """A field for every span, named where the name has room."""
    parts: list[Markup] = []
    for index, span in enumerate(found.spans):
        verdict, name = outcome(span.first)
        start = at(span.start)
        following = found.spans[index + 1].start if index + 1 < len(found.spans) else span.end
        width = max(1.0, at(following) - start)
        kind = f"span {verdict} {'odd' if index % 2 else 'even'}"
        tells = element("title", span.text(found.field))
        field = element("rect", x=start, y=TOP, width=max(1.0, width - 1), height=BAND)
        parts.append(element("g", tells, field, class_=kind))
        shown = name or verdict
        if len(shown) * LETTER < width - 6:
            parts.append(
                element("text", shown, x=start + width / 2, y=TOP + 14, text_anchor="middle", class_="on-span")
            )
    return parts


def brief(number: float) -> str:
    """Three digits, whatever the size."""
    if abs(number) < 999.5:
        return f"{number:.3g}"
    return f"{number / 1e6:,.3g}M" if abs(number) >= 1e6 else f"{number:,.0f}"


def _runs(shares: Sequence[tuple[float, Share | None]]) -> list[list[tuple[float, Share]]]:
    runs: list[list[tuple[float, Share]]] = [[]]
    for value, one in shares:
        if one is None:
            runs.append([])
        else:
            runs[-1].append((value, one))
    return [run for run in runs if run]


def _option(answer: Answer, name: str) -> Option | None:
    """Where it meets the limits."""
    return next((one for one in answer.options if one.candidate == name and one.serving == "meets"), None)


def _of(rates: dict[str, list[Option | None]], field: str) -> list[float]:
    found = [getattr(one, field) for options in rates.values() for one in options if one is not None]
    return [value for value in found if value is not None]


def _figure(title: str, drawn: Markup, keys: Markup | None = None, about: str = "") -> Markup:
    told = [element("strong", title)]
    if about:
        told.append(element("span", about, class_="hint"))
    if keys is not None:
        told.append(keys)
    return element("figure", element("figcaption", *told), drawn, class_="chart panel")


def _keys(named: Sequence[tuple[str, str]]) -> Markup:
    shown = [element("span", element("span", class_=f"sign {kind}"), text) for kind, text in named]
    return element("span", joined(shown), class_="now")


def _nothing(text: str) -> Markup:
    return element("p", text, class_="hint")
