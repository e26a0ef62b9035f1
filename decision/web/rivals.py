"""All candidates side by side."""

from __future__ import annotations

from decision.answer import Answer, Option, Share, percent, size
from decision.web.charts import brief, kind_of
from decision.web.markup import Markup, code, element, prose

COLUMNS = (
    ("Candidate", ""),
    ("Accuracy, %", "number"),
    ("Difference", "number"),
    ("Good enough", ""),
    ("Adapter", "number"),
    ("Texts/s", "number"),
    ("p95 ms", "number"),
    ("GiB", "number"),
    ("{currency} a month", "number"),
    ("Limits", ""),
)
MARKS = {"choice": "choice", "runner": "runner-up"}


def rivals(answer: Answer) -> Markup:
    """One line a candidate, the most accurate first."""
    if not answer.options:
        return Markup("")
    currency = next((option.cost.currency for option in answer.options if option.cost is not None), "cost")
    names = [(name.format(currency=currency), kind) for name, kind in COLUMNS]
    head = element("tr", *(element("th", name, scope="col", class_=kind or None) for name, kind in names))
    body = [_line(answer, option) for option in answer.options]
    table = element("table", element("thead", head), element("tbody", *body))
    region = element("div", table, class_="scroll", role="region", aria_labelledby="rivals-title", tabindex="0")
    parts = [element("h2", "Candidates", id="rivals-title"), region]
    if answer.yardstick is not None:
        told = f"Differences are to `{answer.yardstick}`, {answer.yardstick_because}."
        parts.insert(1, element("p", prose(told), class_="hint"))
    return element("section", *parts, id="rivals")


def _line(answer: Answer, option: Option) -> Markup:
    kind = kind_of(option, answer)
    mark = element("span", MARKS[kind], class_=f"chip {kind}") if kind in MARKS else ""
    cost = option.cost
    cells = [
        ("number", percent(option.accuracy).replace(" %", "") if option.accuracy else "–"),
        ("number", _points(option.difference) if option.difference else "–"),
        (
            option.quality or "",
            {"not worse": "yes", "worse": "no", "undecided": "undecided", None: "–"}[option.quality],
        ),
        ("number", size(option.adapter_bytes)),
        ("number", f"{option.texts_per_s:,.0f}" if option.texts_per_s is not None else "–"),
        ("number", brief(option.p95_ms) if option.p95_ms is not None else "–"),
        ("number", f"{option.memory_gib:.3g}" if option.memory_gib is not None else "–"),
        ("number", f"{cost.per_month:,.0f}" if cost is not None else "–"),
    ]
    shown = [element("td", text, class_=one.replace(" ", "-") or None) for one, text in cells]
    name = element("th", element("span", class_=f"sign {kind}"), code(option.candidate), " ", mark, scope="row")
    why = element("span", prose(option.why), class_="hint") if option.why else ""
    limits = element("td", option.serving, " ", why, class_=f"limits {option.serving.replace(' ', '-')}")
    return element("tr", name, *shown, limits, class_=kind)


def _points(share: Share) -> str:
    return f"{100 * share.value:+.1f} [{100 * share.low:+.1f}, {100 * share.high:+.1f}]" if share.value else "0"
