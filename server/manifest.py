"""`adapter.json`: what a PEFT folder does not say about an adapter, and the checks on it.

The standard PEFT folder has no label names, no problem type, no pooling and no trace of the weights
it was trained on. The manifest adds them. It is the only place that reads or writes the format.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from server.errors import AdapterDamaged

FILE_NAME = "adapter.json"
SCHEMA = 1
MAX_LABELS = 10_000
MAX_NESTING = 50
"""Levels of lists and objects that training facts may have: what nests deeper cannot be sent to another process."""
TEMPERATURES = (1e-3, 1e3)
ADAPTER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What an adapter, and so its folder, may be called."""

Pooling = Literal["mean", "cls", "last", "native"]
Positions = Literal["kept", "shifted"]
ProblemType = Literal["single_label", "multi_label", "regression"]
POSITIONS: tuple[str, ...] = get_args(Positions)
POOLINGS: tuple[str, ...] = get_args(Pooling)
PROBLEM_TYPES: tuple[str, ...] = get_args(ProblemType)
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured figure with its 95 % interval and the rows it was measured on.

    A fraction (accuracy, F1), a correlation from -1 to 1 (pearson, spearman), or an error in the data's unit (rmse).
    """

    value: float
    low: float
    high: float
    num_rows: int


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """Where an adapter comes from. Nothing here changes how it is served."""

    data_set: str
    num_train_rows: int
    num_validation_rows: int
    seed: int
    recipe: Mapping[str, object]
    metrics: Mapping[str, Metric]
    train_s: float
    code_version: str
    library_versions: Mapping[str, str]
    created: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that serving needs beside the weights.

    labels: in logit order. max_length: tokens, special tokens included. temperature: logits are
    divided by it before the activation. threshold: the score from which on a label counts, where there may be several.
    positions: whether a prefix shifts the positions of the text behind it, as peft
    does, or keeps them; without a prefix they are kept. base_fingerprint: `sha256` over the base model's weight files.
    """

    method: str
    labels: tuple[str, ...]
    problem_type: ProblemType
    max_length: int
    pooling: Pooling
    temperature: float
    base_name: str
    base_fingerprint: str
    weights_sha256: str
    positions: Positions = "kept"
    threshold: float = 0.5
    training: TrainingFacts | None = field(default=None)


def write(manifest: Manifest, folder: Path) -> None:
    """Write `adapter.json` into a folder that is not yet visible under its final name."""
    record = {"schema": SCHEMA, **asdict(manifest)}
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def parse(text: str) -> Manifest:
    """Read a manifest; raises AdapterDamaged naming the field that is wrong."""
    try:
        record = json.loads(text)
        json.dumps(record, ensure_ascii=False).encode("utf-8")  # an escape may hide half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise AdapterDamaged(f"{FILE_NAME} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise AdapterDamaged(f"{FILE_NAME} holds {type(record).__name__}, not an object")
    if record.get("schema") != SCHEMA:
        raise AdapterDamaged(f"{FILE_NAME} has schema {record.get('schema')!r}; this version reads {SCHEMA}")
    read = _Reader(record)
    return Manifest(
        method=read.text("method"),
        labels=read.labels("labels"),
        problem_type=read.choice("problem_type", PROBLEM_TYPES),  # type: ignore[arg-type]
        max_length=read.whole("max_length", 1, 1_000_000),
        pooling=read.choice("pooling", POOLINGS),  # type: ignore[arg-type]
        temperature=read.number("temperature", *TEMPERATURES),
        base_name=read.text("base_name"),
        base_fingerprint=read.digest("base_fingerprint"),
        weights_sha256=read.digest("weights_sha256"),
        positions=read.choice("positions", POSITIONS) if "positions" in record else "kept",  # type: ignore[arg-type]
        threshold=read.number("threshold", 0.0, 1.0) if "threshold" in record else 0.5,
        training=_training(record.get("training")),
    )


def _training(record: object) -> TrainingFacts | None:
    """The training facts as far as they can be read: they inform, and never stop an adapter."""
    if not isinstance(record, dict) or not _nests_within(MAX_NESTING, record):
        return None
    try:
        metrics = {name: _metric(**metric) for name, metric in record["metrics"].items()}
        return TrainingFacts(**{**record, "metrics": metrics})
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None


def _nests_within(num_levels: int, value: object) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return parts is None or (num_levels > 0 and all(_nests_within(num_levels - 1, part) for part in parts))


def _metric(value: float, low: float, high: float, num_rows: int) -> Metric:
    numbers = (float(value), float(low), float(high))
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a metric is not finite")
    return Metric(*numbers, int(num_rows))


class _Reader:
    def __init__(self, record: Mapping[str, object]) -> None:
        self.record = record

    def text(self, name: str) -> str:
        value = self.record.get(name)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, "a non-empty string")
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.record.get(name)
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(name, "one of " + ", ".join(allowed))
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        value = self.record.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        value = self.record.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"a number from {low} to {high}")
        return float(value)

    def digest(self, name: str) -> str:
        value = self.record.get(name)
        if not isinstance(value, str) or not SHA256.fullmatch(value):
            raise self._wrong(name, "64 lower-case hexadecimal digits")
        return value

    def labels(self, name: str) -> tuple[str, ...]:
        value = self.record.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_LABELS:
            raise self._wrong(name, f"a list of 1 to {MAX_LABELS} strings")
        if not all(isinstance(label, str) and label for label in value) or len(set(value)) != len(value):
            raise self._wrong(name, "a list of different, non-empty strings")
        return tuple(value)

    def _wrong(self, name: str, right: str) -> AdapterDamaged:
        shown = repr(self.record.get(name))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return AdapterDamaged(f"{FILE_NAME}: `{name}` is {shown}, it must be {right}")
