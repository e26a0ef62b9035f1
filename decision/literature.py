"""What is answered from published work, never mixed up with what was measured."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from decision.facts import Facts, read_tables

FILE = Path(__file__).parent / "literature.toml"
BY_BASE = ("decoder", "quantised")
"""Chapters about the base; the others are kinds of task."""


class Reason(Facts):
    says: str
    sources: tuple[str, ...] = Field(min_length=1)
    """Keys of the bibliography."""


class Chapter(Facts):
    """What the literature recommends in one situation."""

    method: str
    options: dict[str, float]
    settings: dict[str, str]
    says: str
    command: str
    """What would measure it; empty where nothing here would."""
    needs: str = ""
    """What the command's files would have to hold, or why there is no command."""
    reasons: tuple[Reason, ...] = Field(min_length=1)


@cache
def chapters() -> dict[str, Chapter]:
    return read_tables(FILE, Chapter)


def task_types() -> list[str]:
    """Kinds of task that only the literature answers."""
    return [name for name in chapters() if name not in BY_BASE]
