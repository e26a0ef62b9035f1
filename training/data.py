"""Data sets for text classification: a folder, a CSV or JSON Lines file, or a set from the hub.

A set has texts (or pairs) with one label each. Validation rows that are not given are cut from the
training rows, and so are test rows; nothing is ever chosen on test.
"""

from __future__ import annotations

import csv
import difflib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from server.errors import DataError

HUB = "hub:"
SUFFIXES = (".csv", ".jsonl")
TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence_A", "premise", "question", "content", "query")
PAIR_COLUMNS = ("text_pair", "sentence2", "sentence_B", "hypothesis")
LABEL_COLUMNS = ("label", "labels", "coarse_label", "intent", "category")
MAX_VALIDATION_ROWS = 250
TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Row:
    text: str
    text_pair: str | None
    label: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; None takes the first usual name that is there."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set ready for one run. labels: every label of the whole training split, in order."""

    name: str
    labels: tuple[str, ...]
    train: list[Row]
    validation: list[Row]
    test: list[Row]


def load(spec: str, train_rows: int | None, seed: int, columns: Columns | None = None) -> Splits:
    """Read a data set and cut what is missing, the same for the same seed. Raises DataError.

    spec: a folder with train.csv (or .jsonl) and, if there are any, validation.csv and test.csv; one
    file; or `hub:name` or `hub:name/config`. train_rows: keep that many training rows, stratified by label.
    """
    columns = columns or Columns()
    name, found, order = _from_hub(spec, columns) if spec.startswith(HUB) else _from_disk(Path(spec), columns)
    rest = found["train"]
    labels = tuple(sorted({row.label for row in rest}, key=order.index if order else None))
    if len(labels) < 2:
        raise DataError(f"`{spec}` has {len(labels)} label in its training rows, classification needs at least 2")
    rng = random.Random(seed)
    test = found.get("test")
    if test is None:
        # not from the run's seed: runs that are compared must be measured on the same rows
        test, rest = take(rest, round(len(rest) * TEST_SHARE), random.Random(0))
    validation = found.get("validation")
    if validation is None:
        wanted = train_rows or len(rest)
        validation, rest = take(rest, min(MAX_VALIDATION_ROWS, max(len(labels), wanted // 8)), rng)
    if train_rows is not None:
        if train_rows > len(rest):
            raise DataError(f"`{spec}` has {len(rest)} training rows beside those for validation, not {train_rows}")
        rest, _ = take(rest, train_rows, rng)
    for split, rows in (("training", rest), ("validation", validation), ("test", test)):
        if not rows:
            raise DataError(f"`{spec}` is too small: no row is left for {split}")
        unknown = {row.label for row in rows} - set(labels)
        if unknown:
            raise DataError(f"`{spec}`: {split} has the label `{min(unknown)}`, which no training row has")
    return Splits(name, labels, rest, validation, test)


def take(rows: Sequence[Row], count: int, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Split off `count` rows, stratified by label; returns them and the others, both shuffled."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    placed: list[tuple[float, Row]] = []
    for label in sorted(by_label):
        group = by_label[label]
        rng.shuffle(group)
        # evenly spread positions: the first k rows of the merged list hold every label's share of k
        placed += [((index + rng.random()) / len(group), row) for index, row in enumerate(group)]
    ordered = [row for _, row in sorted(placed, key=lambda pair: pair[0])]
    taken, others = ordered[:count], ordered[count:]
    rng.shuffle(taken)
    rng.shuffle(others)
    return taken, others


def _from_disk(path: Path, columns: Columns) -> tuple[str, dict[str, list[Row]], list[str]]:
    if path.is_file():
        return path.stem, {"train": _read_file(path, columns)}, []
    if not path.is_dir():
        raise DataError(f"data `{path}` is neither a folder nor a file; a hub data set is written hub:name")
    found = {}
    for split in ("train", "validation", "test"):
        files = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
        if files:
            found[split] = _read_file(files[0], columns)
    if "train" not in found:
        raise DataError(f"folder `{path}` has neither train.csv nor train.jsonl")
    return path.resolve().name, found, []


def _read_file(path: Path, columns: Columns) -> list[Row]:
    if path.suffix not in SUFFIXES:
        raise DataError(f"`{path}` is not read; a data file ends in {' or '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return _rows(csv.DictReader(file, strict=True), columns, str(path))
            return _rows(
                (_object(line, path, number) for number, line in enumerate(file, 1) if line.strip()), columns, str(path)
            )
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


def _from_hub(spec: str, columns: Columns) -> tuple[str, dict[str, list[Row]], list[str]]:
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
    label = _column(found["train"].column_names, columns.label, LABEL_COLUMNS, spec)
    order = list(getattr(found["train"].features[label], "names", []))
    splits = {}
    for split in ("train", "validation", "test"):
        if split in found and (split == "train" or _is_labelled(found[split][label], order)):
            records = ({**record, label: order[record[label]] if order else record[label]} for record in found[split])
            splits[split] = _rows(records, columns, f"{spec} {split}")
    return name, splits, order


def _is_labelled(values: Sequence[object], order: Sequence[str]) -> bool:
    """Public test splits often hide their labels: they are all -1 there."""
    return not order or all(isinstance(value, int) and 0 <= value < len(order) for value in values)


def _rows(records: Iterable[Mapping[str, object]], columns: Columns, source: str) -> list[Row]:
    remaining = iter(records)
    first = next(remaining, None)
    if first is None:
        raise DataError(f"`{source}` has no rows")
    names = list(first)
    text = _column(names, columns.text, TEXT_COLUMNS, source)
    label = _column(names, columns.label, LABEL_COLUMNS, source)
    pair = _pair_column(names, columns.text_pair, source)
    return [
        _row(record, text, pair, label, f"`{source}` row {number}")
        for number, record in enumerate(chain((first,), remaining), 1)
    ]


def _row(record: Mapping[str, object], text: str, pair: str | None, label: str, place: str) -> Row:
    value, name = record.get(text), record.get(label)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: `{text}` is empty")
    if name is None or str(name) == "":
        raise DataError(f"{place}: `{label}` is empty")
    second = record.get(pair) if pair else None
    return Row(value, str(second) if second else None, str(name))


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
