"""Base models by their shape."""

from __future__ import annotations

from functools import cache
from math import log
from pathlib import Path
from typing import Literal

from pydantic import Field

from decision.facts import Facts, read_tables

FILE = Path(__file__).parent / "bases.toml"


class BaseShape(Facts):
    """What memory and the size of adapters follow from."""

    id: str
    """On the hub; that of rows."""
    kind: Literal["encoder", "decoder"]
    parameters: int = Field(ge=1)
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    keys: int = Field(ge=1)
    """Width of keys and values."""
    feedforward: int = Field(ge=1)
    feedforward_matrices: int = Field(ge=2, le=3)
    max_tokens: int = Field(ge=1)

    def head_parameters(self, num_labels: int) -> int:
        """Of one linear layer; a decoder's has no bias."""
        return num_labels * (self.hidden + (self.kind == "encoder"))


@cache
def bases() -> dict[str, BaseShape]:
    """Those that are known, by the names that questions use."""
    return read_tables(FILE, BaseShape)


def nearest(parameters: float) -> BaseShape:
    """Of the known ones that whose number of parameters is nearest, with the given number instead of its own.

    Its id is one that no row has: what was measured of a base says nothing of one that is shaped like it.
    """
    found = min(bases().values(), key=lambda base: abs(log(base.parameters / parameters)))
    return found.model_copy(update={"id": f"{parameters:g} parameters", "parameters": int(parameters)})
