"""A method's own options, and how long texts may be: what an adapter's shape depends on.

Nothing here needs pydantic, so that adapters with random weights can be made on a machine that has torch and peft only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from server.errors import RecipeError

DEFAULT_MAX_LENGTH = 512
NUM_SEEDS = 2**32
"""What numpy takes."""


class HasOptions(Protocol):
    """A `server.methods.Method`, or whatever else is trained."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> Mapping[str, tuple[float, float, float]]: ...


def options_of(method: HasOptions, given: Mapping[str, float]) -> dict[str, float]:
    """The given options with the method's defaults for the others. Raises RecipeError."""
    unknown = sorted(set(given) - set(method.options))
    if unknown:
        known = ", ".join(method.options) or "none"
        raise RecipeError(f"option `{unknown[0]}` is unknown to method {method.name}; its options: {known}")
    options = {name: default for name, (default, _, _) in method.options.items()} | dict(given)
    for name, value in options.items():
        _, low, high = method.options[name]
        if not low <= value <= high:
            raise RecipeError(f"option `{name}` is {value}, it must lie between {low} and {high}")
    return options
