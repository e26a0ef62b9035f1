"""What the page shows of one question: its controls, the answer, the way to it, and charts around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from decision.errors import QuestionError
from decision.outline import note
from decision.tree import Tree
from decision.web.charts import accuracy_by_bytes, along, by_hot, sensitivity_chart
from decision.web.inputs import form
from decision.web.markup import Markup, element, joined, prose
from decision.web.query import Asked, read
from decision.web.rivals import rivals
from decision.web.verdict import in_a_line, missing, rests_on, verdict
from decision.web.way import way, whole


@dataclass(frozen=True, slots=True)
class Page:
    """What stands in the page; is_right: whether the question could be asked."""

    main: Markup
    is_right: bool


def page(tree: Tree, query: Mapping[str, str]) -> Page:
    """The page of a query."""
    asked = read(query, tree.task_types()[0])
    if asked.question is not None:
        try:
            in_words, result = _result(tree, asked)
        except QuestionError as error:
            asked = Asked(asked.values, asked.move, error=error)
    if asked.error is not None:
        in_words = str(asked.error)
        told = element("p", element("strong", "This cannot be asked: "), prose(in_words))
        result = element("div", told, class_="notice bad", role="alert")
    status = element("p", in_words, id="summary", class_="unseen", role="status")
    shown = element("div", result, id="result", class_="result")
    main = joined([status, element("div", form(tree, asked), shown, class_="decision")])
    return Page(main, asked.error is None)


def _result(tree: Tree, asked: Asked) -> tuple[str, Markup]:
    """In a line, and in full."""
    question, move = asked.question, asked.move
    assert question is not None
    answer = tree.answer(question)
    moved = along(tree, question, move)
    charts = element(
        "section", element("h2", "Charts", class_="unseen"),
        accuracy_by_bytes(answer), by_hot(tree, answer), sensitivity_chart(moved, question, move), class_="charts",
    )  # fmt: skip
    tree_part = element(
        "details", element("summary", "The whole tree"), whole(tree, answer.path, question, move), class_="panel",
        id="whole-tree",
    )  # fmt: skip
    parts = [
        verdict(answer), way(tree, answer, move), rivals(answer), charts, missing(answer), rests_on(answer),
        tree_part, element("p", prose(note(tree)), class_="hint"),
    ]  # fmt: skip
    return in_a_line(answer), joined(parts)
