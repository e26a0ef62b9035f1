"""Rows of a CSV or JSON Lines file as they are written; what could be read in two ways is refused, with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.errors import DataError

SUFFIXES = (".csv", ".jsonl")
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Rows:
    """What a file holds. names: of the columns, in order, of whatever row; lines: of a CSV row that has several."""

    source: str
    names: Sequence[str]
    rows: Sequence[Mapping[str, object]]
    lines: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def check_quotes(self, label: str) -> None:
        """Refuse a row that an open quote has made out of several: each of its lines is a row with a known label.

        Raises DataError. A text of several lines passes, unless all of them end in a comma and a label.
        """
        if not self.lines:
            return
        known = {_bare(row[label]) for position, row in enumerate(self.rows) if position not in self.lines}
        column = self.names.index(label)
        for position, lines in self.lines.items():
            apart = [cells for cells in csv.reader(lines, quoting=csv.QUOTE_NONE) if cells]
            if all(len(cells) == len(self.names) and _is_known(cells[column], known) for cells in apart):
                raise DataError(
                    f"`{self.source}` row {position + 1}: each of its {len(lines)} lines is a row by itself; close the "
                    "quote before them, or write a text that is meant so in JSON Lines"
                )


def read(path: Path) -> Rows:
    """Read a file by its suffix. Raises DataError naming file and row, or line where it cannot be taken apart."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"`{path}` is not read; a data file ends in {' or '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"`{path}` cannot be read: {error}") from error
    rows = _csv(lines, str(path)) if path.suffix == ".csv" else _json_lines(lines, str(path))
    if not rows.rows:
        raise DataError(f"`{path}` has no rows")
    return rows


def _csv(lines: Sequence[str], source: str) -> Rows:
    """The first row names the columns; those without a name, such as the row numbers of pandas, are never asked for."""
    header: list[str] = []
    rows: list[Mapping[str, object]] = []
    places: dict[int, Sequence[str]] = {}
    reader, start = csv.reader(lines, strict=True, skipinitialspace=True), 0
    try:
        for cells in reader:
            first, start = start, reader.line_num
            if not "".join(cells).strip() and len(cells) < 2:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                twice = _repeated([name for name in header if name])
                if twice is not None:
                    raise DataError(f"`{source}` has a header with `{twice}` twice; every column has a name of its own")
                continue
            _check_cells(cells, header, f"`{source}` row {len(rows) + 1}")
            if start - first > 1:
                places[len(rows)] = lines[first:start]
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"`{source}` cannot be read: {error}, in the row that begins on line {start + 1}") from error
    return Rows(source, header, rows, places)


def _check_cells(cells: Sequence[str], header: Sequence[str], place: str) -> None:
    if any("\0" in cell for cell in cells):
        raise DataError(f"{place} holds a NUL character, which no text has; the file is damaged")
    if len(cells) != len(header):
        fields = f"{len(cells)} field{'s' if len(cells) > 1 else ''}"
        raise DataError(f"{place} has {fields}, the header has {len(header)}; a text with commas stands in quotes")
    if [cell.strip().lstrip(BYTE_ORDER_MARK) for cell in cells] == header:
        raise DataError(f"{place} repeats the header; files that are joined need it once")


def _json_lines(lines: Sequence[str], source: str) -> Rows:
    rows = [_object(line, f"`{source}` line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return Rows(source, list(dict.fromkeys(name for row in rows for name in row)), rows)


def _object(line: str, place: str) -> Mapping[str, object]:
    try:
        record = json.loads(line, object_pairs_hook=_named_once)
        if "\\u" in line:
            json.dumps(record, ensure_ascii=False).encode("utf-8")  # an escape may hide half a surrogate pair
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"{place} cannot be read: {error}") from error
    except RecursionError as error:
        raise DataError(f"{place} is nested too deeply to be a row") from error
    if not isinstance(record, dict):
        raise DataError(f"{place} is not an object")
    return record


def _named_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; the parser itself keeps the last of several values of a name. Raises ValueError."""
    twice = _repeated([name for name, _ in pairs])
    if twice is not None:
        raise ValueError(f"it has `{twice}` twice")
    return dict(pairs)


def _repeated(names: Sequence[str]) -> str | None:
    if len(set(names)) == len(names):
        return None
    return next(name for name in names if names.count(name) > 1)


def _bare(cell: object) -> str:
    """Without the quotes of its own; doubled ones belong to a text."""
    return str(cell).strip().removeprefix('"').removesuffix('"').strip()


def _is_known(cell: str, known: set[str]) -> bool:
    """Whether a cell is a label of other rows. Numbers are rarely the same twice: any is known where all are."""
    return bool(_bare(cell)) and (_bare(cell) in known or (_is_number(cell) and all(map(_is_number, known))))


def _is_number(cell: str) -> bool:
    try:
        float(_bare(cell))
    except ValueError:
        return False
    return True
