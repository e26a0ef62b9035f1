"""Rows as data sets write them: a folder, a CSV or JSON Lines file, or the hub; errors name the place."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from server.errors import DataError

HUB = "hub:"
SUFFIXES = (".csv", ".jsonl")
TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence_A", "premise", "question", "content", "query")
PAIR_COLUMNS = ("text_pair", "sentence2", "sentence_B", "hypothesis")
LABEL_COLUMNS = ("label", "labels", "coarse_label", "intent", "category")
NUMBER_COLUMNS = ("score", "relatedness_score", "similarity_score", "rating", "label", "labels")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; None takes the first usual name that is there."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it is written, its label not yet understood."""

    text: str
    text_pair: str | None
    label: object
    column: str
    place: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a source holds. order: the names of its labels, where it says so."""

    name: str
    splits: Mapping[str, list[Record]]
    order: Sequence[str] = ()


def read(spec: str, columns: Columns, wants_numbers: bool) -> Source:
    """Read a folder with train.csv (or .jsonl), one file, or `hub:name`. Raises DataError.

    wants_numbers: look for the usual columns of numbers, not of labels.
    """
    usual = NUMBER_COLUMNS if wants_numbers else LABEL_COLUMNS
    return _from_hub(spec, columns, usual) if spec.startswith(HUB) else _from_disk(Path(spec), columns, usual)


def _from_disk(path: Path, columns: Columns, usual: Sequence[str]) -> Source:
    if path.is_file():
        return Source(path.stem, {"train": _read_file(path, columns, usual)})
    if not path.is_dir():
        raise DataError(f"data `{path}` is neither a folder nor a file; a hub data set is written hub:name")
    found = {}
    for split in ("train", "validation", "test"):
        files = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
        if files:
            found[split] = _read_file(files[0], columns, usual)
    if "train" not in found:
        raise DataError(f"folder `{path}` has neither train.csv nor train.jsonl")
    return Source(path.resolve().name, found)


def _read_file(path: Path, columns: Columns, usual: Sequence[str]) -> list[Record]:
    if path.suffix not in SUFFIXES:
        raise DataError(f"`{path}` is not read; a data file ends in {' or '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return _records(csv.DictReader(file, strict=True), columns, usual, str(path))
            lines = (_object(line, path, number) for number, line in enumerate(file, 1) if line.strip())
            return _records(lines, columns, usual, str(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"`{path}` cannot be read: {error}") from error


def _object(line: str, path: Path, number: int) -> Mapping[str, object]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"`{path}` line {number} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"`{path}` line {number} is not an object")
    return record


def _from_hub(spec: str, columns: Columns, usual: Sequence[str]) -> Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = spec.removeprefix(HUB)
    parts = name.split("/")
    path, config = ("/".join(parts[:2]), "/".join(parts[2:])) if len(parts) > 2 else (name, None)
    try:
        found = load_dataset(path, config)
    except (DatasetsError, OSError, ValueError, ConnectionError) as error:
        raise DataError(f"data set `{name}` cannot be fetched from the hub: {error}") from error
    if "train" not in found:
        raise DataError(f"data set `{name}` has no train split; it has {', '.join(found)}")
    label = _column(found["train"].column_names, columns.label, usual, spec)
    kind = found["train"].features[label]
    order = [] if usual is NUMBER_COLUMNS else list(getattr(getattr(kind, "feature", kind), "names", None) or [])
    splits = {}
    for split in ("train", "validation", "test"):
        if split in found and (split == "train" or _is_labelled(found[split][label], order)):
            records = ({**record, label: _named(record[label], order)} for record in found[split])
            splits[split] = _records(records, columns, usual, f"{spec} {split}")
    return Source(name, splits, order)


def _named(value: Any, order: Sequence[str]) -> object:
    """Names in the place of the numbers that a hub data set has for its labels."""
    if not order:
        return value
    return [order[one] for one in value] if isinstance(value, list) else order[value]


def _is_labelled(values: Sequence[Any], order: Sequence[str]) -> bool:
    """Public test splits often hide their labels: they are all -1 there."""
    if not order:
        return any(value != -1 for value in values)
    flat = chain.from_iterable(value if isinstance(value, list) else (value,) for value in values)
    return all(isinstance(value, int) and 0 <= value < len(order) for value in flat)


def _records(
    records: Iterable[Mapping[str, object]], columns: Columns, usual: Sequence[str], source: str
) -> list[Record]:
    remaining = iter(records)
    first = next(remaining, None)
    if first is None:
        raise DataError(f"`{source}` has no rows")
    names = list(first)
    text = _column(names, columns.text, TEXT_COLUMNS, source)
    label = _column(names, columns.label, usual, source)
    pair = _pair_column(names, columns.text_pair, source)
    return [
        _record(record, text, pair, label, f"`{source}` row {number}")
        for number, record in enumerate(chain((first,), remaining), 1)
    ]


def _record(record: Mapping[str, object], text: str, pair: str | None, label: str, place: str) -> Record:
    value = record.get(text)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: `{text}` is empty")
    second = record.get(pair) if pair else None
    return Record(value, str(second) if second else None, record.get(label), label, place)


def _column(names: Sequence[str], wanted: str | None, usual: Sequence[str], source: str) -> str:
    """The column that is asked for, else the first usual one. Raises DataError where there is none."""
    if wanted is None:
        found = next((name for name in usual if name in names), None)
        if found is None:
            raise DataError(f"`{source}` has the columns {', '.join(map(str, names))}; name the right one with a flag")
        return found
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1)
        raise DataError(f"`{source}` has no column `{wanted}`" + (f"; did you mean `{near[0]}`?" if near else ""))
    return wanted


def _pair_column(names: Sequence[str], wanted: str | None, source: str) -> str | None:
    """The column of second texts; a data set need not have one."""
    if wanted is None and not set(PAIR_COLUMNS) & set(names):
        return None
    return _column(names, wanted, PAIR_COLUMNS, source)
