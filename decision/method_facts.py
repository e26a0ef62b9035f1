"""What a decision needs to know of a method and the rows do not say."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from decision.base_shape import BaseShape
from decision.errors import FactsError
from decision.facts import Facts, read_tables

FILE = Path(__file__).parent / "methods.toml"
PARAMETER_BYTES = 4
"""Adapters and heads are written in float32."""
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


class MethodFacts(Facts):
    merges: bool = False
    """Its update can be added to the base's weights."""
    is_shared: bool = True
    """Many tasks share one copy of the base."""
    is_base_cost: bool = False
    """It acts behind the base model or without it, so serving it costs no more than serving the bare base."""
    served_as: str | None = None
    """The method that a service would serve it as; itself if not given."""
    is_answer: bool = True
    """May be recommended."""
    parameters: str | None = None
    """A formula; without one, bytes are known only of what was measured."""

    def num_parameters(self, base: BaseShape, options: Mapping[str, float]) -> int | None:
        """What training makes, without the head; None without a formula, or where it asks for an option not given."""
        if self.parameters is None:
            return None
        names: dict[str, float] = {name: value for name, value in base if isinstance(value, int)}
        names |= {"base_parameters": base.parameters, **options}
        try:
            return int(_value(ast.parse(self.parameters, mode="eval").body, names))
        except KeyError:
            return None


UNKNOWN = MethodFacts()


@cache
def methods() -> dict[str, MethodFacts]:
    return read_tables(FILE, MethodFacts)


def facts_of(method: str) -> MethodFacts:
    """Of a method that the file does not name, nothing is taken for granted."""
    return methods().get(method, UNKNOWN)


def _value(node: ast.expr, names: Mapping[str, float]) -> float:
    """Sums, differences and products of numbers and names. Raises KeyError where a name is unknown, FactsError."""
    match node:
        case ast.BinOp(left, operation, right) if type(operation) in OPERATORS:
            return OPERATORS[type(operation)](_value(left, names), _value(right, names))
        case ast.Constant(int(number)):
            return number
        case ast.Name(name):
            return names[name]
    raise FactsError(f"`{ast.unparse(node)}` in a formula of `{FILE}` is no sum, difference, product, number or name")
