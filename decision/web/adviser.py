"""Evidence that is read once, and what was lately asked of it: what a server holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from decision.answer import Answer
from decision.cost import FILE, Prices
from decision.errors import DecisionError
from decision.evidence import FOLDER, Evidence
from decision.question import Question
from decision.rows import RowsError
from decision.sensitivity import sensitivity
from decision.tree import Tree
from decision.web.page import Page, page

MOST_KEPT = 1_000
"""Answers; one sensitivity asks for hundreds of them, most of them again when its slider moves."""
AGAIN_S = 30.0
"""After which evidence that could not be read is tried again."""


class KeptTree(Tree):
    """A tree that remembers what it answered."""

    def __init__(self, evidence: Evidence, prices: Prices) -> None:
        super().__init__(evidence, prices)
        self._kept = lru_cache(MOST_KEPT)(super().answer)

    def answer(self, question: Question) -> Answer:
        return self._kept(question)


class Adviser:
    """May be made by any thread, and used by one at a time. Raises what `decision` raises of evidence and questions."""

    def __init__(self, evidence: Path | None, prices: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._evidence, self._prices, self._clock = evidence or FOLDER, prices or FILE, clock
        self._tree: Tree | None = None
        self._failure: tuple[float, Exception] | None = None

    def answer_json(self, question: Question) -> str:
        """What `adaptermux-decide ask --json` prints."""
        return self.tree().answer(question).model_dump_json(indent=2) + "\n"

    def sensitivity_json(self, question: Question, move: str, low: float | None, high: float | None) -> str:
        """An object whose `spans` are what `adaptermux-decide sensitivity --json` prints line by line."""
        found = sensitivity(self.tree(), question, move, low, high)
        return json.dumps({"move": move, "spans": [span.record() for span in found]})

    def page(self, query: Mapping[str, str]) -> Page:
        return page(self.tree(), query)

    def tree(self) -> Tree:
        """Read when it is first wanted."""
        if self._tree is None:
            if self._failure is not None and self._clock() < self._failure[0] + AGAIN_S:
                raise self._failure[1].with_traceback(None)
            try:
                self._tree = KeptTree(Evidence.read(self._evidence), Prices.read(self._prices))
            except (DecisionError, RowsError) as error:
                self._failure = self._clock(), error
                raise
        return self._tree
