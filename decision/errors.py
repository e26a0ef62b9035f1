"""What can be wrong with what a decision is asked, or rests on; `decision.rows.RowsError` is about measurements."""

from __future__ import annotations


class DecisionError(Exception):
    """The message says what is wrong, the value, and what would be right."""


class QuestionError(DecisionError):
    """A question cannot be asked like that: the caller's mistake. field: the one that is wrong."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class FactsError(DecisionError):
    """A file that decisions rest on, of prices, bases, methods or what rows stand for, is not as it must be."""
