"""Rows as data sets write them: a folder, a CSV or JSON Lines file, or the hub; errors name the place."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import DataError
from training import files
from training.files import Rows

HUB = "hub:"
SPLITS = ("train", "validation", "test")
TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence_A", "premise", "question", "content", "query")
PAIR_COLUMNS = ("text_pair", "sentence2", "sentence_B", "hypothesis")
LABEL_COLUMNS = ("label", "labels", "coarse_label", "intent", "category")
NUMBER_COLUMNS = ("score", "relatedness_score", "similarity_score", "rating", "label", "labels")
HIDDEN = (-1, None)
"""What a hub data set writes where it tells no label."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; None takes the first usual name that is there."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Names of the columns that are read."""

    text: str
    text_pair: str | None
    label: str

    def __str__(self) -> str:
        second = "no second texts" if self.text_pair is None else f"second texts in `{self.text_pair}`"
        return f"texts in `{self.text}`, {second} and labels in `{self.label}`"


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


def read(spec: str, columns: Columns, wants_numbers: bool, wanted: str = "train") -> Source:
    """Read a folder with train.csv (or .jsonl), one file, or `hub:name`. Raises DataError.

    wants_numbers: look for the usual columns of numbers, not of labels. wanted: the split that is asked for; of a
    source that has it, nothing else need be there, or fit.
    """
    usual = NUMBER_COLUMNS if wants_numbers else LABEL_COLUMNS
    if spec.startswith(HUB):
        return _from_hub(spec, columns, usual, wanted)
    return _from_disk(Path(spec), columns, usual, wanted)


def _from_disk(path: Path, columns: Columns, usual: Sequence[str], wanted: str) -> Source:
    if path.is_file():
        return Source(path.stem, {"train": _read_file(path, columns, usual)[1]})
    if not path.is_dir():
        raise DataError(f"data `{path}` is neither a folder nor a file; a hub data set is written hub:name")
    paths = {split: file for split in SPLITS if (file := _file_of(path, split)) is not None}
    if wanted != "train" and wanted in paths:
        return Source(path.resolve().name, {wanted: _read_file(paths[wanted], columns, usual)[1]})
    if "train" not in paths:
        raise DataError(f"folder `{path}` has neither train.csv nor train.jsonl")
    found = {split: _read_file(file, columns, usual) for split, file in paths.items()}
    for split, (chosen, _) in found.items():
        if chosen != found["train"][0]:
            raise DataError(
                f"`{paths[split]}` has {chosen}, but `{paths['train']}` has {found['train'][0]}; all splits of a "
                "data set have the same columns"
            )
    return Source(path.resolve().name, {split: records for split, (_, records) in found.items()})


def _file_of(folder: Path, split: str) -> Path | None:
    there = [file for suffix in files.SUFFIXES if (file := folder / f"{split}{suffix}").is_file()]
    if len(there) > 1:
        raise DataError(f"folder `{folder}` has both {' and '.join(file.name for file in there)}; keep one of them")
    return there[0] if there else None


def _read_file(path: Path, columns: Columns, usual: Sequence[str]) -> tuple[_Chosen, list[Record]]:
    read = files.read(path)
    chosen = _choose(read.names, columns, usual, str(path))
    read.check_quotes(chosen.label)
    if columns.text_pair is None and chosen.text_pair is not None:
        _check_pairs(read, chosen.text_pair)
    return chosen, _records(read.rows, chosen, str(path))


def _check_pairs(read: Rows, pair: str) -> None:
    """Rows of JSON Lines may leave out their second text, but not have it under another usual name."""
    others = [name for name in PAIR_COLUMNS if name != pair]
    for number, row in enumerate(read.rows, 1):
        other = next((name for name in others if row.get(name)), None)
        if pair not in row and other is not None:
            raise DataError(f"`{read.source}` row {number} has `{other}`, other rows have `{pair}`; take one name")


def _from_hub(spec: str, columns: Columns, usual: Sequence[str], wanted: str) -> Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = spec.removeprefix(HUB)
    parts = name.split("/")
    path, config = ("/".join(parts[:2]), "/".join(parts[2:])) if len(parts) > 2 else (name, None)
    try:
        found = load_dataset(path, config)
    except (DatasetsError, OSError, ValueError, ConnectionError) as error:
        raise DataError(f"data set `{name}` cannot be fetched from the hub: {error}") from error
    anchor = "train" if "train" in found else wanted
    if anchor not in found:
        raise DataError(f"data set `{name}` has no {wanted} split; it has {', '.join(found)}")
    chosen = _choose(found[anchor].column_names, columns, usual, spec)
    kind = found[anchor].features[chosen.label]
    names = getattr(getattr(kind, "feature", kind), "names", None) or []
    order = [] if usual is NUMBER_COLUMNS else [name.strip() for name in names]
    splits = {}
    for split in SPLITS:
        if split in found and chosen.label in found[split].column_names:
            records = _hub_records(found[split], chosen, order, f"{spec} {split}")
            if records:
                splits[split] = records
    if not {"train", wanted} & splits.keys():
        raise DataError(f"data set `{name}` has no rows with a label in its {wanted} split")
    return Source(name, splits, order)


def _hub_records(rows: Any, chosen: _Chosen, order: Sequence[str], source: str) -> list[Record]:
    """The rows that have a label: -1 stands for none, in parts of a set with named labels and in hidden test splits."""
    values = rows[chosen.label]
    if not order and all(value in HIDDEN for value in values):
        return []
    records = []
    for number, row in enumerate(rows, 1):
        value, place = row[chosen.label], f"`{source}` row {number}"
        if not order or value not in HIDDEN:
            named = _named(value, order, f"{place}: `{chosen.label}`")
            records.append(_record({**row, chosen.label: named}, chosen, place))
    return records


def _named(value: Any, order: Sequence[str], where: str) -> object:
    """Names in the place of the numbers that a hub data set has for its labels."""
    if not order:
        return value
    if isinstance(value, list):
        return [_named(one, order, where) for one in value]
    if not isinstance(value, int) or not 0 <= value < len(order):
        raise DataError(f"{where} is {reprlib.repr(value)}, which none of its {len(order)} names stands for")
    return order[value]


def _records(rows: Iterable[Mapping[str, object]], chosen: _Chosen, source: str) -> list[Record]:
    return [_record(row, chosen, f"`{source}` row {number}") for number, row in enumerate(rows, 1)]


def _record(row: Mapping[str, object], chosen: _Chosen, place: str) -> Record:
    text = _text(row, chosen.text, place)
    if text is None:
        raise DataError(f"{place}: `{chosen.text}` is empty")
    pair = _text(row, chosen.text_pair, place) if chosen.text_pair is not None else None
    return Record(text, pair, row.get(chosen.label), chosen.label, place)


def _text(row: Mapping[str, object], column: str, place: str) -> str | None:
    """What stands in a column; None where that is nothing, or blanks."""
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{place}: `{column}` is {reprlib.repr(value)}, not text")
    return value if value.strip() else None


def _choose(names: Sequence[str], columns: Columns, usual: Sequence[str], source: str) -> _Chosen:
    """The columns that are asked for, and of the others the usual ones; none serves for two things."""
    asked = [name for name in (columns.text, columns.text_pair, columns.label) if name is not None]
    twice = next((name for name in asked if asked.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"column `{twice}` is asked for twice; texts, second texts and labels have one each")
    free = [name for name in names if name not in asked]
    text = _column("text", columns.text, TEXT_COLUMNS, names, free, source)
    label = _column("label", columns.label, usual, names, free, source)
    has_pair = columns.text_pair is not None or not set(PAIR_COLUMNS).isdisjoint(free)
    pair = _column("text_pair", columns.text_pair, PAIR_COLUMNS, names, free, source) if has_pair else None
    return _Chosen(text, pair, label)


def _column(
    kind: str, wanted: str | None, usual: Sequence[str], names: Sequence[str], free: Sequence[str], source: str
) -> str:
    """The column that is wanted, else the first usual one that is free. Raises DataError where there is none.

    kind: as its flag and a plan call it.
    """
    if wanted is None:
        found = next((name for name in usual if name in free), None)
        if found is None:
            raise DataError(
                f"`{source}` has the columns {', '.join(map(str, names))}; say which is the {kind}: "
                f"`--{kind}-column`, or `{kind}` in a plan"
            )
        return found
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1)
        raise DataError(f"`{source}` has no column `{wanted}`" + (f"; did you mean `{near[0]}`?" if near else ""))
    return wanted
