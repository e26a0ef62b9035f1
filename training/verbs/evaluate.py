"""`adaptermux-train evaluate`: measure an adapter on any data set."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from server.manifest import PROBLEM_TYPES
from training.verbs.run import add_column_flags, columns_of

if TYPE_CHECKING:
    from training.adapter_reader import Told, TrainedAdapter
    from training.measurement import Report
    from training.sources import Columns

HELP = "measure an adapter on a data set"
DESCRIPTION = "Measure an adapter: figures with intervals, labels one by one, and how far its scores can be trusted."
EXAMPLE = "adaptermux-train evaluate adapters/device-reviews --data training/data/device_reviews --output report"

MAX_PAIRS = 5
NAMES = {
    "accuracy": "accuracy",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "subset_accuracy": "all labels of a text right",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "rmse": "RMSE",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a measurement can be told."""
    parser.add_argument("adapter", type=Path, help="folder of the adapter, ours or plain PEFT's")
    parser.add_argument("--data", required=True, help="a .csv or .jsonl file, a folder with test.csv, or hub:name")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="which rows; left out, all of a file, and the test rows of a folder or hub set. Where none are given, "
        "test takes those that `run` cuts off",
    )
    add_told_flags(parser)
    parser.add_argument("--output", type=Path, help="folder to write report, answers and pictures to")
    parser.add_argument("--overwrite", action="store_true", help="replace an output folder that exists")
    add_column_flags(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def add_told_flags(parser: argparse.ArgumentParser) -> None:
    """What an adapter's folder may not say by itself."""
    parser.add_argument("--base", help="folder or hub id of the base model, where the adapter's own record does not do")
    parser.add_argument("--labels", nargs="+", help="names of the labels in the head's order, without adapter.json")
    parser.add_argument("--problem-type", choices=PROBLEM_TYPES, help="what a label is, without adapter.json")


def told(flags: argparse.Namespace) -> Told:
    """What the flags of `add_told_flags` say."""
    from training.adapter_reader import Told

    return Told(flags.base, flags.labels, flags.problem_type)


def columns_for(adapter: TrainedAdapter, flags: argparse.Namespace) -> Columns:
    """What the flags say; numbers are looked for in the column that the adapter has learned."""
    columns, manifest = columns_of(flags), adapter.manifest
    has_learned = manifest.problem_type == "regression" and manifest.training is not None
    return replace(columns, label=manifest.labels[0]) if has_learned and columns.label is None else columns


def run(flags: argparse.Namespace) -> int:
    from training import adapter_reader, measurement, whole_folder
    from training.data import load_split
    from training.prediction import encode, logits_of

    if flags.output is not None:
        whole_folder.check_free(flags.output, flags.overwrite)
    adapter = adapter_reader.read(flags.adapter, told(flags))
    data, rows = load_split(flags.data, flags.split, adapter.manifest.problem_type, columns_for(adapter, flags))
    measurement.check_labels(rows, adapter.manifest, data)
    logits = logits_of(adapter.model, adapter.family, encode(adapter, rows), not flags.quiet)
    measured = measurement.measure(adapter, data, rows, logits)
    if flags.output is not None:
        with whole_folder.written(flags.output) as place:
            measurement.write(measured, place)
    print(measurement.record(measured.report) if flags.json else _table(measured.report))
    return 0


def _table(report: Report) -> str:
    lines = [f"{report.adapter} on {report.data}, {report.num_rows:,} rows"]
    for key, metric in report.metrics.items():
        lines.append(f"  {NAMES[key]:<28} {metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]")
    if report.trust is not None:
        trust = report.trust
        lines += [
            f"  {'':<28} before  after temperature {trust.temperature:g}",
            f"  {'expected calibration error':<28} {trust.error_before:.3f}   {trust.error_after:.3f}",
            f"  {'negative log-likelihood':<28} {trust.nll_before.value:.3f}   {trust.nll_after.value:.3f}  "
            f"[{trust.nll_after.low:.3f}, {trust.nll_after.high:.3f}]",
        ]
    if report.labels:
        width = min(40, max(len(one.label) for one in report.labels))
        lines.append(f"\n  {'label':<{width}}  precision  recall     F1   rows")
        lines += [
            f"  {one.label[:width]:<{width}}  {_cell(one.precision):>9}  {_cell(one.recall):>6}  {_cell(one.f1):>5}  "
            f"{one.num_rows:>5}"
            for one in report.labels
        ]
    lines += _mistakes(report)
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _mistakes(report: Report) -> list[str]:
    """The pairs of labels that are mixed up most."""
    if report.confusion is None:
        return []
    pairs = [
        (count, report.labels[truth].label, report.labels[answer].label)
        for truth, row in enumerate(report.confusion)
        for answer, count in enumerate(row)
        if truth != answer and count
    ]
    worst = sorted(pairs, key=lambda pair: -pair[0])[:MAX_PAIRS]
    lines = [f"  {count:>5}  {truth} answered as {answer}" for count, truth, answer in worst]
    return ["\n  most frequent mistakes", *lines] if worst else []


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
