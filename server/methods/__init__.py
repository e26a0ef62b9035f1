"""The PEFT methods, one file each, found by module name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from server.errors import MethodUnsupported
from server.methods.base import Method

__all__ = ["Method", "method_named", "method_of", "methods"]


@cache
def methods() -> dict[str, Method[Any]]:
    """Every method by its module name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    return {name: importlib.import_module(f"{__name__}.{name}").METHOD for name in names}


def method_named(name: str) -> Method[Any]:
    """The method of that name; raises MethodUnsupported with the list of known ones."""
    if name not in methods():
        raise MethodUnsupported(f"method `{name}` is not supported; supported: {', '.join(methods())}")
    return methods()[name]


def method_of(peft_type: object) -> Method[Any]:
    """The method of an `adapter_config.json`'s `peft_type`; raises MethodUnsupported."""
    for method in methods().values():
        if method.peft_type == peft_type:
            return method
    supported = ", ".join(method.peft_type for method in methods().values())
    raise MethodUnsupported(f"peft_type {peft_type!r} is not supported; supported: {supported}")
