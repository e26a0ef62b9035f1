"""Rows of a file that is to be classified, and how rows are written: CSV, JSON Lines, or one text a line.

Rows are read one after another, so that a file of any size, or one that never ends, takes no memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TextIO, TypeVar

from server.errors import DataError, SettingsError

T = TypeVar("T")
Kind = Literal["csv", "jsonl", "lines"]
OutputKind = Literal["csv", "jsonl"]
SEPARATOR = "|"
NAME_APART = "name the new ones apart with --column-prefix"
SUFFIXES: Mapping[str, Kind] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "lines"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row's text is, and the second one of a pair."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input. number: from 1, the header left out. cells: as they were read, by column.

    problem: why the row has no text that could be classified, if it has none.
    """

    number: int
    cells: Mapping[str, object]
    text: str
    text_pair: str | None
    problem: str | None


def input_kind(source: Path, asked: Kind | None) -> Kind:
    """What to read a file as, `-` being standard input. Raises SettingsError where nothing tells."""
    found = asked or SUFFIXES.get(source.suffix) or ("lines" if source == Path("-") else None)
    if found is None:
        raise SettingsError(f"`{source}` ends in none of {', '.join(SUFFIXES)}; say its --input-format")
    return found


def output_kind(output: Path | None, asked: OutputKind | None, read: Kind) -> OutputKind:
    """What to write: as asked, as the name says, or as was read. Raises SettingsError where nothing tells."""
    if asked is not None:
        return asked
    named = SUFFIXES.get(output.suffix) if output is not None else read
    if named == "jsonl" or named == "csv":
        return named
    if output is None:
        return "csv"
    raise SettingsError(f"--output `{output}` ends in neither .csv nor .jsonl; say its --format")


class Rows:
    """The rows of an open file, to be iterated over once.

    names: the columns of a CSV file's header, or of the first row elsewhere.
    Making it raises SettingsError where a CSV file lacks a column, and DataError, as iterating does, where the file
    cannot be read.
    """

    def __init__(self, file: TextIO, source: str, kind: Kind, columns: Columns) -> None:
        self._source, self._columns = source, columns
        if kind == "csv":
            self.names, self._cells = self._read_csv(file)
        else:
            cells = self._guarded(self._read_json(file) if kind == "jsonl" else self._read_lines(file))
            first = list(islice(cells, 1))
            self.names = tuple(first[0]) if first else (columns.text,)
            self._cells = chain(first, cells)

    def __iter__(self) -> Iterator[Row]:
        for number, cells in enumerate(self._cells, 1):
            text, problem = _text(cells, self._columns.text)
            text_pair = None
            if problem is None and self._columns.text_pair is not None:
                text_pair, problem = _text(cells, self._columns.text_pair)
            yield Row(number, cells, text, text_pair, problem)

    def _read_csv(self, file: TextIO) -> tuple[tuple[str, ...], Iterator[Mapping[str, object]]]:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        lists = self._guarded(cells for cells in reader if "".join(cells).strip() or len(cells) > 1)
        names = tuple(name.strip() for name in next(lists, ()))
        for name in (self._columns.text, self._columns.text_pair):
            if name is not None and name not in names:
                raise SettingsError(
                    f"`{self._source}` has no column `{name}`, it has {', '.join(names) or 'none'}; "
                    "choose with --text-column and --pair-column"
                )
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise DataError(
                f"`{self._source}` has a header with `{twice[0]}` twice; every column has a name of its own"
            )
        return names, self._csv_rows(names, lists)

    def _csv_rows(self, names: Sequence[str], lists: Iterator[list[str]]) -> Iterator[Mapping[str, object]]:
        for number, cells in enumerate(lists, 1):
            if len(cells) != len(names):
                raise DataError(
                    f"`{self._source}` row {number} has {len(cells)} fields, the header has {len(names)}; "
                    "a text with commas stands in quotes"
                )
            yield dict(zip(names, cells, strict=True))

    def _read_lines(self, file: TextIO) -> Iterator[Mapping[str, object]]:
        for line in file:
            yield {self._columns.text: line.rstrip("\r\n")}

    def _read_json(self, file: TextIO) -> Iterator[Mapping[str, object]]:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"`{self._source}` line {number} is not JSON: {error}") from error
                if not isinstance(record, dict):
                    raise DataError(f"`{self._source}` line {number} is not an object")
                yield record

    def _guarded(self, found: Iterator[T]) -> Iterator[T]:
        """What reading the file itself raises, as DataError."""
        try:
            yield from found
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"`{self._source}` cannot be read: {error}") from error


class Encoder:
    """Writes rows as CSV or JSON Lines, each with `added` behind the columns that it came with.

    Raises SettingsError where `names`, those of the input, hold one of `added`, and DataError where a later row does.
    """

    def __init__(self, kind: OutputKind, names: Sequence[str], added: Sequence[str]) -> None:
        self._kind, self._added, self._columns = kind, frozenset(added), (*names, *added)
        both = [name for name in added if name in names]
        if both:
            raise SettingsError(f"the input has a column `{both[0]}`, too; {NAME_APART}")

    def header(self) -> bytes:
        return _csv_bytes([self._columns]) if self._kind == "csv" else b""

    def encode(self, rows: Iterable[tuple[Row, Mapping[str, object]]]) -> bytes:
        """The bytes of whole rows, each with the values of added columns; those that a row lacks are empty."""
        records = [{**self._checked(row), **values} for row, values in rows]
        if self._kind == "csv":
            return _csv_bytes([[_cell(record.get(name)) for name in self._columns] for record in records])
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        return lines.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes the escape that it was

    def _checked(self, row: Row) -> Mapping[str, object]:
        for name in row.cells:
            if name in self._added:
                raise DataError(f"row {row.number} has a column `{name}`, too; {NAME_APART}")
            if self._kind == "csv" and name not in self._columns:
                raise DataError(
                    f"row {row.number} has a column `{name}`, the first row has none; write --format jsonl instead"
                )
        return row.cells


def _text(cells: Mapping[str, object], name: str) -> tuple[str, str | None]:
    """A row's text, or why it has none."""
    text = cells.get(name)
    if not isinstance(text, str):
        return "", f"`{name}` is no text" if name in cells else f"there is no `{name}`"
    return text, None if text.strip() else f"`{name}` is an empty text"


def _cell(value: object) -> object:
    """What stands in a CSV file for a value of JSON: texts in a list are joined as the labels of training data are."""
    if isinstance(value, list) and all(isinstance(one, str) and SEPARATOR not in one for one in value):
        return SEPARATOR.join(value)
    return value if value is None or isinstance(value, str | float) else json.dumps(value, ensure_ascii=False)


def _csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    lines = _Lines()
    # the writer quotes a cell that holds one of the characters that end a line: both must be among them
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines.found).encode("utf-8", "backslashreplace")


class _Lines:
    """Takes what a CSV writer writes, a row a call."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def write(self, line: str) -> None:
        self.found.append(line)
