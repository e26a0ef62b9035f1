"""Data sets for text classification: a folder, a CSV or JSON Lines file, or a set from the hub.

A set has texts (or pairs), each with one label, with any number of labels, or with a number. Validation
rows that are not given are cut from the training rows, and so are test rows; nothing is ever chosen on test.
"""

from __future__ import annotations

import math
import random
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from server.errors import DataError
from server.manifest import MAX_LABELS, ProblemType
from training import sources
from training.grouping import grouped
from training.sources import Columns, Record, Source

SEPARATOR = "|"
"""Between the labels of one text where a file has no lists."""
NUM_BINS = 10
MAX_NUMBER = 1e15
"""Squares of what is answered must not overflow float32."""
STEPS = 256
"""Of float32, in the spread of numbers: rounding an answer then adds at most 1/512 of the spread to its error."""
MIN_SPREAD = 1e-15
"""Weights of a head that are multiplied by it, and numbers that are divided by it, must stay within float32."""
MAX_VALIDATION_ROWS = 250
TEST_SHARE = 0.2

Asked = Literal["auto", ProblemType]
ASKED: tuple[str, ...] = ("auto", *get_args(ProblemType))

Label = str | tuple[str, ...] | float
"""single_label: the one; multi_label: any number of them, sorted; regression: a number."""


@dataclass(frozen=True, slots=True)
class Row:
    text: str
    text_pair: str | None
    label: Label


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set ready for one run.

    labels: every label of the whole training split, in order; of numbers, the name of their column.
    """

    name: str
    problem_type: ProblemType
    labels: tuple[str, ...]
    train: list[Row]
    validation: list[Row]
    test: list[Row]

    def by_name(self) -> dict[str, list[Row]]:
        """The rows of every split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def load(
    spec: str,
    train_rows: int | None,
    seed: int,
    columns: Columns | None = None,
    problem_type: Asked = "auto",
    validation_rows: int | None = None,
    test_rows: int | None = None,
) -> Splits:
    """Read a data set and cut what is missing, the same for the same seed and no text on both sides. Raises DataError.

    spec: a folder with train.csv (or .jsonl) and, if there are any, validation.csv and test.csv; one
    file; or `hub:name` or `hub:name/config`, whose rows without a label are left out. train_rows: keep that many
    training rows, stratified by label; validation_rows, test_rows: at most that many of these, of test the same ones
    whatever the seed. problem_type: `auto` takes lists of labels for multi_label, numbers with any
    fraction among them for regression, and everything else for single_label. Labels lose the blanks around them,
    however they are written.
    """
    read = sources.read(spec, columns or Columns(), wants_numbers=problem_type == "regression")
    kind = _problem_type(read.splits["train"]) if problem_type == "auto" else problem_type
    if kind == "multi_label":
        _check_lists(read.splits["train"])
    found = {split: [_row(record, kind) for record in records] for split, records in read.splits.items()}
    rest = found["train"]
    labels = _labels(spec, read, kind, rest)
    rng = random.Random(seed)
    test = found.get("test")
    if test is None:
        test, rest = _cut_test(rest)
    if test_rows is not None and test_rows < len(test):
        test, _ = take(test, test_rows, random.Random(0))
    validation = found.get("validation")
    if validation is None:
        wanted = train_rows or len(rest)
        cut = validation_rows or min(MAX_VALIDATION_ROWS, max(len(labels), wanted // 8))
        validation, rest = _take_texts(rest, cut, rng)
    elif validation_rows is not None:
        validation, _ = take(validation, validation_rows, rng)
    if train_rows is not None:
        if train_rows > len(rest):
            raise DataError(f"`{spec}` has {len(rest)} training rows beside those for validation, not {train_rows}")
        rest, _ = take(rest, train_rows, rng)
    for split, rows in (("training", rest), ("validation", validation), ("test", test)):
        if not rows:
            raise DataError(f"`{spec}` is too small: no row is left for {split}")
        unknown = {label for row in rows for label in _names(row)} - set(labels)
        if unknown:
            raise DataError(f"`{spec}`: {split} has the label `{min(unknown)}`, which no training row has")
    if kind == "regression":
        _check_spread(f"`{spec}`: `{labels[0]}`", targets(rest, labels, kind))
    return Splits(read.name, kind, labels, rest, validation, test)


def load_split(
    spec: str, split: str | None, problem_type: ProblemType, columns: Columns | None = None
) -> tuple[str, list[Row]]:
    """The rows to measure an adapter on, and what they are called. Raises DataError.

    split: None takes every row of a file, and the test rows of a folder or a hub set; where no test rows are given,
    `test` takes those that `load` cuts from the training rows.
    """
    is_file = Path(spec).is_file()
    wanted = split or ("train" if is_file else "test")
    read = sources.read(spec, columns or Columns(), problem_type == "regression", wanted)
    if wanted not in read.splits and wanted != "test":
        raise DataError(f"`{spec}` has no {wanted} rows; it has {', '.join(read.splits)}")
    rows = [_row(record, problem_type) for record in read.splits.get(wanted, read.splits.get("train", []))]
    if wanted not in read.splits:
        rows, _ = _cut_test(rows)
    if not rows:
        raise DataError(f"`{spec}` is too small: no row is left for {wanted}")
    return f"{read.name} (all rows)" if is_file and split is None else f"{read.name} ({wanted})", rows


def targets(rows: Sequence[Row], labels: Sequence[str], problem_type: ProblemType) -> NDArray[Any]:
    """What a head is to answer, labels as transformers' losses take them.

    single_label: the label's index, int64 [rows]; multi_label: 0 or 1, float32 [rows, labels]; regression: the
    number, float64 [rows], as what is far from 0 has to be brought near it before it is float32 (`Scale.shrink`).
    """
    if problem_type == "regression":
        return np.array([row.label for row in rows], dtype=np.float64)
    index = {label: position for position, label in enumerate(labels)}
    if problem_type == "single_label":
        return np.array([index[name] for row in rows for name in _names(row)], dtype=np.int64)
    found = np.zeros((len(rows), len(labels)), dtype=np.float32)
    for position, row in enumerate(rows):
        found[position, [index[name] for name in _names(row)]] = 1
    return found


def take(rows: Sequence[Row], count: int, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Split off `count` rows, stratified by label; returns them and the others, both shuffled.

    Several labels count together as one; numbers are put into tenths by rank.
    """
    by_label = grouped(zip(_strata(rows), rows, strict=True), lambda pair: pair[0])
    placed: list[tuple[float, Row]] = []
    for label in sorted(by_label):
        group = [row for _, row in by_label[label]]
        rng.shuffle(group)
        # evenly spread positions: the first k rows of the merged list hold every label's share of k
        placed += [((index + rng.random()) / len(group), row) for index, row in enumerate(group)]
    ordered = [row for _, row in sorted(placed, key=lambda pair: pair[0])]
    taken, others = ordered[:count], ordered[count:]
    rng.shuffle(taken)
    rng.shuffle(others)
    return taken, others


def _cut_test(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Test rows and the others, whatever the run's seed: runs that are compared are measured on the same rows."""
    return _take_texts(rows, round(len(rows) * TEST_SHARE), random.Random(0))


def _take_texts(rows: Sequence[Row], count: int, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """As `take`, but rows of the same text stay together, so that none is learned and asked; then `count` is a goal."""
    by_text = grouped(rows, lambda row: (row.text, row.text_pair))
    if len(by_text) == len(rows):
        return take(rows, count, rng)
    firsts = [same[0] for same in by_text.values()]
    taken, others = take(firsts, max(1, round(count * len(firsts) / len(rows))), rng)

    def all_of(chosen: Sequence[Row]) -> list[Row]:
        return [row for first in chosen for row in by_text[first.text, first.text_pair]]

    return all_of(taken), all_of(others)


def _strata(rows: Sequence[Row]) -> list[Any]:
    numbers = [row.label for row in rows if isinstance(row.label, float)]
    if not numbers:
        return [row.label for row in rows]
    edges = np.quantile(numbers, np.arange(1, NUM_BINS) / NUM_BINS)
    return [int(one) for one in np.digitize(numbers, edges)]


def _names(row: Row) -> tuple[str, ...]:
    """The labels of a row; a number has none."""
    if isinstance(row.label, str):
        return (row.label,)
    return row.label if isinstance(row.label, tuple) else ()


def _problem_type(records: Sequence[Record]) -> ProblemType:
    if any(isinstance(record.label, list) for record in records):
        return "multi_label"
    if not any(isinstance(record.label, float) for record in records):
        return "single_label"
    for record in records:
        # what is empty is refused in any case, by what reads the labels
        if isinstance(record.label, bool) or (record.label and not isinstance(record.label, int | float)):
            raise DataError(
                f"{record.place}: `{record.column}` is {reprlib.repr(record.label)}, other rows have fractions; say "
                "what they mean with --problem-type"
            )
    return "regression"


def _check_lists(records: Sequence[Record]) -> None:
    """Refuse a column of zeros and ones, one of them for every label, whose positions say what they mean."""
    lists = [record.label for record in records if isinstance(record.label, list)]
    first = records[0]
    if (
        len(lists) == len(records)
        and {len(one) for one in lists} == {len(lists[0])}
        and len(lists[0]) > 1
        and all(isinstance(part, int | float) and part in (0, 1) for one in lists for part in one)
    ):
        raise DataError(
            f"{first.place}: `{first.column}` is {reprlib.repr(first.label)}, as in every row as many zeros and ones; "
            "write the names of the labels that are meant"
        )


def _labels(spec: str, read: Source, problem_type: ProblemType, rows: Sequence[Row]) -> tuple[str, ...]:
    if problem_type == "regression":
        return (read.splits["train"][0].column,)
    names = {name for row in rows for name in _names(row)}
    labels = tuple(sorted(names, key=read.order.index if read.order else None))
    fewest = 2 if problem_type == "single_label" else 1
    if len(labels) < fewest:
        raise DataError(
            f"`{spec}` has {len(labels)} label in its training rows, {problem_type} classification needs at least "
            f"{fewest}"
        )
    if len(labels) > MAX_LABELS:
        raise DataError(f"`{spec}` has {len(labels)} labels in its training rows, an adapter has at most {MAX_LABELS}")
    return labels


def _check_spread(where: str, numbers: NDArray[np.float64]) -> None:
    """Refuse numbers that a server, whose logits are float32 in the data's own unit, could not tell apart."""
    if np.ptp(numbers) == 0:
        raise DataError(f"{where} has the same number in all training rows; there is nothing to learn")
    centre, spread = float(numbers.mean()), float(numbers.std())
    needed = max(MIN_SPREAD, STEPS * float(np.spacing(np.float32(abs(centre)))))
    if spread < needed:
        raise DataError(
            f"{where} has a mean of {centre:.6g} and a standard deviation of {spread:.3g}; answers are float32, which "
            f"takes at least {needed:.3g} there: subtract a constant, or take another unit"
        )
    different, left = len(np.unique(numbers)), len(np.unique(((numbers - centre) / spread).astype(np.float32)))
    if left < different / 2:
        raise DataError(
            f"{where} has {different} different numbers from {numbers.min():.6g} to {numbers.max():.6g}, of which "
            f"float32 tells {left} apart in units of their spread; take out those that lie far from the others"
        )


def _row(record: Record, problem_type: ProblemType) -> Row:
    """Understand the label of a row. Raises DataError naming row and column."""
    value, where = record.label, f"{record.place}: `{record.column}`"
    if value is None or (isinstance(value, str) and not value.strip() and problem_type != "multi_label"):
        raise DataError(f"{where} is empty")
    readers: dict[ProblemType, Callable[[object, str], Label]]
    readers = {"single_label": _one_label, "multi_label": _several_labels, "regression": _number}
    return Row(record.text, record.text_pair, readers[problem_type](value, where))


def _one_label(value: object, where: str) -> str:
    if isinstance(value, list):
        raise DataError(
            f"{where} is {reprlib.repr(value)}, not one label; train on lists with --problem-type multi_label"
        )
    if not isinstance(value, str | int | float) or value != value:
        raise DataError(f"{where} is {reprlib.repr(value)}, not one label")
    return str(value).strip()


def _several_labels(value: object, where: str) -> tuple[str, ...]:
    """A list, or text with the labels joined by `|`; nothing at all is a text without labels."""
    parts: list[object]
    if isinstance(value, str):
        parts = list(value.split(SEPARATOR)) if value.strip() else []
    else:
        parts = value if isinstance(value, list) else [value]
    for part in parts:
        if not isinstance(part, str | int) or isinstance(part, bool) or str(part).strip() == "":
            raise DataError(
                f"{where} has the label {reprlib.repr(part)}; write a list of names, or names joined by `|`"
            )
    return tuple(sorted({str(part).strip() for part in parts}))


def _number(value: object, where: str) -> float:
    try:
        # Python reads underscores in numbers, nobody else does
        is_number = isinstance(value, str | int | float) and not isinstance(value, bool) and "_" not in str(value)
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_NUMBER:
        raise DataError(f"{where} is {reprlib.repr(value)}, not a finite number")
    return number
