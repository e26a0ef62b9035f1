"""What can go wrong with a load test."""

from __future__ import annotations


class LoadTestError(Exception):
    """The message says what is wrong, and what would be right."""


class Misuse(LoadTestError):
    """A scenario, a flag or a server that does not fit what was asked."""
