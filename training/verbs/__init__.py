"""What `adaptermux-train` can be told to do, one file each."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

VERBS = ("run", "example", "evaluate", "merge", "push", "pull", "grid", "report", "dummy")


class Verb(Protocol):
    """A module of this package. It imports heavy libraries only inside `run`, so that help is quick."""

    HELP: str
    """One line, for the list of verbs."""
    DESCRIPTION: str
    EXAMPLE: str
    """A command that works as it stands."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Say which flags there are."""

    def run(self, flags: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


def verbs() -> Mapping[str, Verb]:
    """Every verb by its name."""
    return {name: cast("Verb", import_module(f"{__name__}.{name}")) for name in VERBS}
