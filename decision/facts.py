"""TOML files that decisions rest on beside the rows: read, checked, and refused with the field that is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from decision.errors import FactsError


class Facts(BaseModel):
    """One table of such a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Kind = TypeVar("Kind", bound=Facts)


def read_table(path: Path, kind: type[Kind]) -> Kind:
    """A file that is one table. Raises FactsError."""
    return _parse(path, "", _record(path), kind)


def read_tables(path: Path, kind: type[Kind]) -> dict[str, Kind]:
    """A file of tables of one kind, by their names. Raises FactsError."""
    return {name: _parse(path, f"{name}.", record, kind) for name, record in _record(path).items()}


def _record(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FactsError(f"`{path}` cannot be read: {error}") from error


def _parse(path: Path, prefix: str, record: object, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = prefix + ".".join(map(str, first["loc"]))
        raise FactsError(f"`{path}`: `{name}`: {first['msg']}, not {first['input']!r:.60}") from error
