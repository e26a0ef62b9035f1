"""The architectures that can be a base model, one file each, found by module name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from server.errors import UnknownFamily
from server.families.base import Family

__all__ = ["Family", "families", "family_of"]


@cache
def families() -> dict[str, Family]:
    """Every family by its module name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    return {name: importlib.import_module(f"{__name__}.{name}").FAMILY for name in names}


def family_of(model_type: str) -> Family:
    """The family of a `config.json`'s `model_type`; raises UnknownFamily with the list of known ones."""
    for family in families().values():
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in families().values() for name in family.model_types))
    raise UnknownFamily(f"base model type `{model_type}` is not supported; supported types: {known}")
