"""The decision as one file for people without a server: it asks for nothing else, and runs no script."""

from __future__ import annotations

from importlib.resources import files

from decision.answer import Answer, percent
from decision.matrix import matrix
from decision.outline import note
from decision.question import ask
from decision.tree import Tree
from decision.web.charts import accuracy_by_bytes, by_hot
from decision.web.markup import Markup, code, element, joined, prose
from decision.web.query import FIRST_ASKED, command
from decision.web.rivals import rivals
from decision.web.verdict import verdict
from decision.web.way import whole

STYLES = ("style.css", "decision.css")


def sheet(tree: Tree) -> str:
    """The whole file: the tree, what it answers for every kind of task, and one answer in full."""
    question = ask({"task_type": tree.task_types()[0], **FIRST_ASKED})
    answer = tree.answer(question)
    parts = [
        element("h1", "Which PEFT method?"),
        element("p", prose(note(tree)), class_="lead"),
        element("section", element("h2", "What is answered, if serving sets no limits"), _matrix(tree)),
        element("section", element("h2", "The tree"), whole(tree), class_="panel"),
        element("section", element("h2", "One answer in full"), element("pre", command(question)), class_="panel"),
        verdict(answer),
        element("section", accuracy_by_bytes(answer), by_hot(tree, answer), class_="charts"),
        rivals(answer),
    ]
    styles = "".join(files("server").joinpath("pages", "assets", name).read_text("utf-8") for name in STYLES)
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "Which PEFT method?"),
        element("style", Markup(styles)),
    ]
    body = element("body", element("main", element("div", *parts, class_="result")))
    return f'<!doctype html>\n<html lang="en">\n<head>{joined(head)}</head>\n{body}\n</html>\n'


def _matrix(tree: Tree) -> Markup:
    """Kind of task by number of training rows."""
    found = matrix(tree, ask({"task_type": tree.task_types()[0], "train_rows": 1}))
    sizes = list(next(iter(found.values()), {}))
    head = element(
        "tr", element("th", "Task", scope="col"), *(element("th", f"{one:,} rows", scope="col") for one in sizes)
    )
    body = [
        element("tr", element("th", name, scope="row"), *(element("td", *_cell(one)) for one in by_size.values()))
        for name, by_size in found.items()
    ]
    table = element("table", element("thead", head), element("tbody", *body))
    return element("div", table, class_="scroll", role="region", aria_label="Matrix", tabindex="0")


def _cell(answer: Answer) -> list[str]:
    if answer.choice is None:
        return [answer.verdict]
    accuracy = percent(answer.choice.accuracy) if answer.choice.accuracy is not None else "not measured"
    told = joined([accuracy, ", confidence ", answer.confidence])
    return [code(answer.choice.candidate), " ", element("span", told, class_="hint whole-line")]
