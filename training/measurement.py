"""What there is to say of an adapter on some rows: figures, labels one by one, and how far scores can be trusted."""

from __future__ import annotations

import csv
import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import DataError
from server.manifest import Manifest, Metric
from training import evaluation, metrics, pictures
from training.adapter_reader import TrainedAdapter
from training.data import Row, targets
from training.evaluation import Calibration, softmax_or_sigmoid
from training.metrics import Bin

SCHEMA = 1
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LabelScore:
    """How one label fares. num_rows: that have it; None where nothing can be said (0 / 0)."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    num_rows: int


@dataclass(frozen=True, slots=True)
class Trust:
    """Scores against truth, before and after the adapter's own temperature; of several labels, decision by decision.

    error: expected calibration error. nll: negative log-likelihood in nats.
    """

    temperature: float
    error_before: float
    error_after: float
    nll_before: Metric
    nll_after: Metric


@dataclass(frozen=True, slots=True)
class Report:
    """confusion [truth][predicted], where a row has one label."""

    adapter: str
    weights_sha256: str
    data: str
    num_rows: int
    problem_type: str
    metrics: Mapping[str, Metric]
    trust: Trust | None
    labels: Sequence[LabelScore]
    confusion: Sequence[Sequence[int]] | None
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A report with what its pictures and its list of answers are made of.

    truth: as `training.data.targets` has it. predicted: likewise, after temperature and threshold. probabilities
    [rows, labels], of numbers None.
    """

    report: Report
    label_names: Sequence[str]
    truth: NDArray[Any]
    predicted: NDArray[Any]
    probabilities: NDArray[np.float64] | None
    bins_before: Sequence[Bin]
    bins_after: Sequence[Bin]


def check_labels(rows: Sequence[Row], manifest: Manifest, data: str) -> None:
    """Refuse rows whose labels the adapter does not know. Raises DataError."""
    if manifest.problem_type == "regression":
        return
    found = Counter(label for row in rows for label in ((row.label,) if isinstance(row.label, str) else row.label))  # type: ignore[union-attr]
    unknown = {label: count for label, count in found.items() if label not in manifest.labels}
    if not unknown:
        return
    shown = [f"`{label}` ({unknown[label]:,} of {len(rows):,} rows)" for label in sorted(unknown)[:MAX_SHOWN]]
    more = f" and {len(unknown) - MAX_SHOWN} more" if len(unknown) > MAX_SHOWN else ""
    near = difflib.get_close_matches(min(unknown), manifest.labels, n=1)
    known = ", ".join(manifest.labels[:10]) + (", ..." if len(manifest.labels) > 10 else "")
    hint = f"; did you mean `{near[0]}`?" if near else ""
    if all(label.startswith("LABEL_") for label in manifest.labels):
        hint = "; say what they are called with --labels"
    raise DataError(
        f"{data} has labels that the adapter does not know: {', '.join(shown)}{more}; it knows {known}{hint}"
    )


def measure(adapter: TrainedAdapter, data: str, rows: Sequence[Row], logits: NDArray[np.float64]) -> Measurement:
    """Compare logits [rows, labels] with the rows' labels, which the adapter knows."""
    manifest = adapter.manifest
    kind, truth = manifest.problem_type, targets(rows, manifest.labels, manifest.problem_type)
    calibration = Calibration(manifest.temperature, manifest.threshold)
    found = evaluation.measure(kind, truth, logits, calibration)
    if kind == "regression":
        report = _report(adapter, data, found, len(rows))
        return Measurement(report, manifest.labels, truth, logits[:, 0], None, [], [])
    truth, predicted = truth.astype(np.int64), evaluation.decide(kind, logits, calibration)
    scaled = logits / calibration.temperature
    probabilities = softmax_or_sigmoid(kind, scaled)
    before, after = _decisions(softmax_or_sigmoid(kind, logits), truth), _decisions(probabilities, truth)
    trust = Trust(
        temperature=calibration.temperature,
        error_before=metrics.expected_calibration_error(*before),
        error_after=metrics.expected_calibration_error(*after),
        nll_before=metrics.negative_log_likelihood(logits, truth),
        nll_after=metrics.negative_log_likelihood(scaled, truth),
    )
    confusion = _confusion(truth, predicted, len(manifest.labels)) if kind == "single_label" else None
    labels = _label_scores(manifest.labels, truth, predicted)
    report = _report(adapter, data, found, len(rows), trust, labels, confusion)
    bins = metrics.reliability(*before), metrics.reliability(*after)
    return Measurement(report, manifest.labels, truth, predicted, probabilities, *bins)


def record(report: Report) -> str:
    """As JSON."""
    return json.dumps({"schema": SCHEMA, **asdict(report)}, indent=2, ensure_ascii=False, allow_nan=False)


def write(measurement: Measurement, folder: Path) -> None:
    """Report, answers row by row, and pictures, into a folder that is made here."""
    report = measurement.report
    folder.mkdir()
    (folder / "report.json").write_text(record(report) + "\n", encoding="utf-8")
    _write_answers(measurement, folder / "answers.csv")
    if report.labels:
        _write_labels(report.labels, folder / "labels.csv")
    if report.confusion is not None:
        pictures.confusion(np.array(report.confusion), measurement.label_names, folder / "confusion.png")
    if report.trust is not None:
        pictures.reliability(measurement.bins_before, measurement.bins_after, report.trust, folder / "reliability.png")
    if report.problem_type == "regression":
        pictures.scatter(measurement.truth, measurement.predicted, measurement.label_names[0], folder / "answers.png")


def _report(
    adapter: TrainedAdapter,
    data: str,
    found: Mapping[str, Metric],
    num_rows: int,
    trust: Trust | None = None,
    labels: Sequence[LabelScore] = (),
    confusion: Sequence[Sequence[int]] | None = None,
) -> Report:
    return Report(
        adapter=adapter.name,
        weights_sha256=adapter.manifest.weights_sha256,
        data=data,
        num_rows=num_rows,
        problem_type=adapter.manifest.problem_type,
        metrics=found,
        trust=trust,
        labels=labels,
        confusion=confusion,
        notes=adapter.notes,
    )


def _confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int) -> list[list[int]]:
    counts = np.bincount(truth * num_labels + predicted, minlength=num_labels**2)
    rows: list[list[int]] = counts.reshape(num_labels, num_labels).tolist()
    return rows


def _write_labels(labels: Sequence[LabelScore], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "precision", "recall", "f1", "num_rows"])
        writer.writerows([one.label, one.precision, one.recall, one.f1, one.num_rows] for one in labels)


def _write_answers(measurement: Measurement, path: Path) -> None:
    """Row by row in the data's order, from 1; the texts themselves stay where they are."""
    names, chances = measurement.label_names, measurement.probabilities
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "truth", "answer", *(["score"] if measurement.report.confusion is not None else [])])
        for index, (truth, answer) in enumerate(zip(measurement.truth, measurement.predicted, strict=True)):
            if chances is None:
                writer.writerow([index + 1, float(truth), float(answer)])
            elif measurement.report.confusion is not None:
                writer.writerow([index + 1, names[truth], names[answer], round(float(chances[index, answer]), 6)])
            else:
                several = ["|".join(name for name, on in zip(names, one, strict=True) if on) for one in (truth, answer)]
                writer.writerow([index + 1, *several])


def _label_scores(labels: Sequence[str], truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[LabelScore]:
    if truth.ndim == 1:
        places = np.arange(len(labels))
        truth, predicted = (truth[:, None] == places).astype(np.int64), (predicted[:, None] == places).astype(np.int64)
    hits, occurs, answered = (truth * predicted).sum(0), truth.sum(0), predicted.sum(0)
    return [
        LabelScore(
            label,
            _share(hits[index], answered[index]),
            _share(hits[index], occurs[index]),
            _share(2 * hits[index], occurs[index] + answered[index]),
            int(occurs[index]),
        )
        for index, label in enumerate(labels)
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _decisions(
    probabilities: NDArray[np.float64], truth: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of several labels, each is a decision of its own, with the two outcomes no and yes."""
    if truth.ndim == 1:
        return probabilities, truth
    flat = probabilities.reshape(-1)
    return np.stack([1 - flat, flat], axis=1), truth.reshape(-1)
