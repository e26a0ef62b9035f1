"""The selection matrix: what is answered for every kind of task at every measured number of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from decision.answer import Answer, percent
from decision.question import Question, ask
from decision.tree import Tree

Form = Literal["md", "text", "json"]
FORMS: tuple[Form, ...] = ("md", "text", "json")


def matrix(tree: Tree, question: Question, sizes: Sequence[int] = ()) -> dict[str, dict[int, Answer]]:
    """Kind of task -> number of rows -> answer. question: everything else; sizes: all measured ones if not given.

    Raises QuestionError where a size cannot be asked.
    """
    chosen = sizes or sorted({size for quality in tree.qualities.values() for size in quality.sizes})
    others = question.model_dump()
    return {
        task_type: {size: tree.answer(ask(others | {"task_type": task_type, "train_rows": size})) for size in chosen}
        for task_type in tree.task_types()
    }


def render(found: dict[str, dict[int, Answer]], form: Form) -> str:
    """As a table in Markdown or plain text, or as JSON with whole answers."""
    if form == "json":
        record = {
            name: {str(size): answer.model_dump(mode="json") for size, answer in by_size.items()}
            for name, by_size in found.items()
        }
        return json.dumps(record, indent=2) + "\n"
    sizes = list(next(iter(found.values()), {}))
    table = [["task", *(f"{size:,} rows" for size in sizes)]]
    table += [[name, *(_cell(answer) for answer in by_size.values())] for name, by_size in found.items()]
    if form == "md":
        lines = [f"| {' | '.join(row)} |" for row in table]
        return "\n".join([lines[0], f"|{'---|' * len(table[0])}", *lines[1:]]) + "\n"
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(lines) + "\n"


def _cell(answer: Answer) -> str:
    if answer.choice is None:
        return answer.verdict
    accuracy = "" if answer.choice.accuracy is None else f", {percent(answer.choice.accuracy)}"
    return f"{answer.choice.candidate}{accuracy} ({answer.confidence})"
