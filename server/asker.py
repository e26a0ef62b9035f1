"""One question, asked of batch after batch: how it is put to the server, and what is written of its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.client import Client
from server.errors import BatchTooLarge, ClassifyFailed, InputRefused
from server.rows import Row
from server.schemas import Prediction

PLACE = re.compile(r"`inputs\[\d+\](\.text)?`")
"""What the server calls a text, which says nothing to whoever sent a file."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every text, as in a request.

    keep_going: whether a row that is refused is written with the reason; otherwise it ends the work.
    column_prefix: stands before the names of new columns.
    """

    adapter_id: str
    top_k: int | None = None
    threshold: float | None = None
    truncate: bool = False
    logits: bool = False
    keep_going: bool = False
    column_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: the values of its new columns, and the version that answered, None where none did."""

    version: str | None
    values: Mapping[str, object]


class Asker:
    """Asks a server. Any thread may call it. has_labels: whether the adapter gives a text any number of labels."""

    def __init__(self, client: Client, question: Question, has_labels: bool) -> None:
        self._client, self._question = client, question
        names = ["label", "score"]
        names += ["labels"] if has_labels else []
        names += ["scores"] if question.top_k is not None else []
        names += ["adapter_version"]
        names += ["error"] if question.keep_going else []
        self.names = tuple(question.column_prefix + name for name in names)

    def ask(self, rows: Sequence[Row]) -> list[Outcome]:
        """The outcome of every row, in order. Raises ClassifyFailed."""
        outcomes: dict[int, Outcome] = {row.number: self._refuse(row, row.problem) for row in rows if row.problem}
        outcomes |= self._ask([row for row in rows if row.number not in outcomes])
        return [outcomes[row.number] for row in rows]

    def _ask(self, rows: list[Row]) -> dict[int, Outcome]:
        """Ask in one request, without those that are refused, or in smaller ones if it is too large."""
        refused: dict[int, Outcome] = {}
        while rows:
            try:
                answer = self._client.classify(self._body(rows))
            except InputRefused as error:
                if error.index >= len(rows):
                    raise
                row = rows[error.index]
                refused[row.number] = self._refuse(row, PLACE.sub("it", str(error)))
                rows = [one for one in rows if one is not row]
            except BatchTooLarge as error:
                if len(rows) == 1:
                    return refused | {rows[0].number: self._refuse(rows[0], str(error))}
                half = len(rows) // 2
                return refused | self._ask(rows[:half]) | self._ask(rows[half:])
            else:
                if len(answer.predictions) != len(rows):
                    raise ClassifyFailed(f"the server gave {len(answer.predictions)} answers to {len(rows)} texts")
                predictions = zip(rows, answer.predictions, strict=True)
                return refused | {row.number: self._outcome(one, answer.version) for row, one in predictions}
        return refused

    def _body(self, rows: Sequence[Row]) -> dict[str, object]:
        question = self._question
        body: dict[str, object] = {
            "adapter_id": question.adapter_id,
            "inputs": [
                row.text if row.text_pair is None else {"text": row.text, "text_pair": row.text_pair} for row in rows
            ],
            "top_k": question.top_k or 1,
            "truncate": question.truncate,
            "output": "logits" if question.logits else "probabilities",
        }
        return body if question.threshold is None else {**body, "threshold": question.threshold}

    def _outcome(self, prediction: Prediction, version: str) -> Outcome:
        values = {
            "label": prediction.label,
            "score": prediction.score,
            "labels": prediction.labels,
            "scores": {one.label: one.score for one in prediction.scores},
            "adapter_version": version,
        }
        return Outcome(version, self._named(values))

    def _refuse(self, row: Row, problem: str) -> Outcome:
        if not self._question.keep_going:
            raise ClassifyFailed(f"row {row.number}: {problem}; correct it, or say --keep-going")
        return Outcome(None, self._named({"error": problem}))

    def _named(self, values: Mapping[str, object]) -> dict[str, object]:
        """By the names of the new columns, those left out that nobody asked for."""
        named = {self._question.column_prefix + name: value for name, value in values.items()}
        return {name: named[name] for name in self.names if name in named}
