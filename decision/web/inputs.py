"""The controls of the page: one for every field of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from decision.base_shape import bases
from decision.question import Question
from decision.sensitivity import MOVING, WHOLE
from decision.tree import Tree
from decision.web.markup import Markup, element, joined, prose
from decision.web.query import MOVE, Asked


@dataclass(frozen=True, slots=True)
class Number:
    """A box, with a slider where scripts run. low, high: ends of the slider, not of what may be asked."""

    label: str
    low: float
    high: float
    unit: str = ""
    if_empty: str = ""
    """What it means that nothing is given."""
    is_most: bool = False
    """Nothing given is more than any number."""


NUMBERS: Mapping[str, Number] = {
    "train_rows": Number("Training rows", 10, 100_000),
    "num_labels": Number("Labels", 2, 1_000, if_empty="as measured"),
    "adapters": Number("Adapters", 1, 10_000, if_empty="1"),
    "hot": Number("Hot among them", 1, 10_000, if_empty="all", is_most=True),
    "rps": Number("Requests", 0.1, 10_000, "/s", "1"),
    "swaps_per_hour": Number("Changes", 1, 100_000, "/h", "0"),
    "p95_ms": Number("p95 at most", 2, 2_000, "ms", "no limit", is_most=True),
    "memory_gib": Number("Memory", 0.25, 256, "GiB", "no limit", is_most=True),
    "mean_tokens": Number("Tokens of a text", 4, 2_048, if_empty="as measured"),
    "max_tokens": Number("The longest", 16, 65_536, if_empty="any", is_most=True),
    "base_parameters": Number("Parameters", 1e6, 1e12, if_empty="as named"),
}
CHECKS: Mapping[str, str] = {
    "locked_base": "The base is locked (certified)",
    "quantised_base": "The base is quantised (4 bits)",
}
GROUPS: Sequence[tuple[str, Sequence[str]]] = (
    ("Task and data", ("task_type", "train_rows", "num_labels")),
    ("Load", ("adapters", "hot", "rps", "swaps_per_hour")),
    ("Limits", ("p95_ms", "memory_gib")),
    ("Texts", ("mean_tokens", "max_tokens")),
    ("Base and device", ("device", "base", "base_parameters", "serving", "locked_base", "quantised_base")),
)
SERVINGS = {"mixed": "mixed on one base", "merged": "merged copies"}


def form(tree: Tree, asked: Asked) -> Markup:
    """Sends the question to the page itself; what is wrong with it stands at its control."""
    groups = [
        element("fieldset", element("legend", title), *(_control(tree, asked, name) for name in names), class_="panel")
        for title, names in GROUPS
    ]
    moved = element("input", type="hidden", name=MOVE, value=asked.move, id=f"in-{MOVE}")
    send = element("div", element("button", "Decide", class_="main"), class_="send")
    return element(
        "form", *groups, moved, send, id="question", class_="question", method="get", action="decision",
        aria_label="Question", autocomplete="off",
    )  # fmt: skip


def label_of(field: str) -> str:
    """As it stands at the control."""
    return NUMBERS[field].label if field in NUMBERS else field


def with_unit(field: str, value: str) -> str:
    unit = NUMBERS[field].unit if field in NUMBERS else ""
    return f"{value} {unit}".strip() if not unit.startswith("/") else f"{value}{unit}"


def _control(tree: Tree, asked: Asked, name: str) -> Markup:
    value = asked.values.get(name, "")
    is_wrong = asked.error is not None and asked.error.field == name
    told = element("p", prose(str(asked.error)), class_="wrong", id=f"wrong-{name}") if is_wrong else Markup("")
    marks = {"aria_invalid": "true" if is_wrong else None, "aria_describedby": f"wrong-{name}" if is_wrong else None}
    help_text = (Question.model_fields[name].description or "").split(", by its name in")[0]
    if name in CHECKS:
        is_on = value.lower() in ("true", "1", "on", "yes")
        box = element("input", type="checkbox", name=name, value="true", checked=is_on, id=f"in-{name}", **marks)
        return joined([element("label", box, CHECKS[name], class_="check"), told])
    if name in NUMBERS:
        number = NUMBERS[name]
        box = element(
            "input", id=f"in-{name}", name=name, value=value, inputmode="decimal", placeholder=number.if_empty or None,
            title=help_text, data_low=number.low, data_high=number.high, data_whole=name in WHOLE,
            data_moves=name in MOVING, data_most=number.is_most, **marks,
        )  # fmt: skip
        unit = element("span", number.unit, class_="unit")
        pair = element("span", box, unit, class_="boxed") if number.unit else box
        return element("div", element("label", number.label, for_=f"in-{name}"), pair, told, class_="input")
    options = _options(tree, name)
    if value and value not in options:
        options = {value: value, **options}
    default = None if Question.model_fields[name].is_required() else str(Question.model_fields[name].default)
    shown = [element("option", text, value=key, selected=key == (value or default)) for key, text in options.items()]
    label = {"task_type": "Task", "device": "Device", "base": "Base", "serving": "Serving"}[name]
    select = element("select", *shown, id=f"in-{name}", name=name, title=help_text, data_default=default, **marks)
    return element("div", element("label", label, for_=f"in-{name}"), select, told, class_="input choice")


def _options(tree: Tree, name: str) -> dict[str, str]:
    """Value -> what is shown."""
    if name == "task_type":
        measured = tree.evidence.task_types()
        return {
            one: f"{one} (as {measured[one]})" if measured.get(one, one) != one else one for one in tree.task_types()
        }
    if name == "base":
        return {one: one for one in bases()}
    if name == "serving":
        return SERVINGS
    return {str(one): str(one).upper() for one in get_args(Question.model_fields[name].annotation)}
