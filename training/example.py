"""The worked example: train methods on one data set, compare them, and leave adapters that can be served."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from decision.bootstrap import Interval, crossed_difference, crossed_mean
from decision.comparison import Verdict, non_inferiority
from decision.rows import BASELINES, QualityRow, RowsError, Writer
from server import base_model
from server.errors import DataError, RecipeError, TrainingFailed
from server.manifest import Metric
from server.methods import method_named
from training.adapter_writer import check_target
from training.cell import read_data, settle
from training.data import Row, Splits, load
from training.floor import floor
from training.grid import finished
from training.grid_plan import Candidate, Cell, GridPlan, Group, Task
from training.sources import Columns
from training.workers import Processes

ADAPTERS, ROWS, CLAIM, TABLE = "adapters", "rows.jsonl", "run.json", "comparison.md"


@dataclass(frozen=True, slots=True)
class Example:
    """What is asked for. plan: candidates, seeds and recipe; at most the first of its `train_rows` are taken."""

    plan: GridPlan
    data: str
    output: Path
    columns: Columns
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """One candidate. rows: its runs, by seed; accuracy: over seeds and texts; adapter: its folder, if there is one."""

    name: str
    rows: Sequence[QualityRow]
    accuracy: Interval
    adapter: Path | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of the first less that of the second, paired. first_is, second_is: each measured against the other."""

    first: str
    second: str
    accuracy: Interval
    first_is: Verdict
    second_is: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it. floor: TF-IDF on the first seed's rows, None where texts have no words; text: one of test."""

    sides: Sequence[Side]
    differences: Sequence[Difference]
    floor: Metric | None
    text: Row


def with_methods(plan: GridPlan, names: Sequence[str]) -> GridPlan:
    """The plan with these methods only, each with the options it has there or its own. Raises MethodUnsupported."""
    held = {candidate.method: candidate for candidate in plan.candidates}
    for name in names:
        if name not in (*held, *BASELINES):
            method_named(name)
    candidates = [held.get(name) or Candidate(name=name, method=name) for name in dict.fromkeys(names)]
    return plan.model_copy(update={"candidates": candidates})


def run_example(asked: Example, command: str, on_run: Callable[[Cell], None] = lambda cell: None) -> Comparison:
    """Train every candidate with every seed, one after the other, each in a process of its own, and compare them.

    What is finished is kept: the same call goes on after an interruption. on_run: told of every run that is there.
    Raises DataError, RecipeError, BaseModelError or TrainingFailed.
    """
    cells, folders = _cells(asked)
    splits = read_data(cells[0])
    _claim(asked, splits)
    results = asked.output / ROWS
    rows = finished(results)
    workers = Processes(1, cells_per_process=1)
    try:
        with Writer(results) as writer:
            for cell in cells:
                folder = folders.get(cell.key)
                if cell.key not in rows or (folder is not None and not folder.exists()):
                    rows[cell.key] = workers.submit_alone(cell, command, folder).result()
                    writer.write(rows[cell.key])
                on_run(cell)
    except BrokenExecutor as error:
        raise TrainingFailed("a training process died; is there enough memory?") from error
    except RowsError as error:
        raise DataError(str(error)) from error
    finally:
        workers.abort()
    by_candidate: dict[str, list[QualityRow]] = {}
    for cell in cells:
        row = rows[cell.key]
        assert isinstance(row, QualityRow), "every run of an example is a final one"
        by_candidate.setdefault(cell.candidate, []).append(row)
    adapters = {cell.candidate: folders[cell.key] for cell in cells if cell.key in folders}
    return _compare(by_candidate, adapters, splits)


def _cells(asked: Example) -> tuple[list[Cell], dict[str, Path]]:
    """Every run, those of a seed together, and by their keys the folders of those whose adapters are kept.

    It is the first seed's, whatever it reaches: the best one's figures would be too good to be true of the next.
    """
    plan, first = asked.plan, asked.plan.final_seeds[0]
    whole = load(asked.data, None, first, asked.columns, "single_label", test_rows=plan.max_test_rows)
    train_rows = min(plan.train_rows[0], len(whole.train))
    if train_rows < len(whole.train):
        whole = load(asked.data, train_rows, first, asked.columns, "single_label", test_rows=plan.max_test_rows)
    task = re.sub(r"[^A-Za-z0-9._-]+", "-", whole.name).strip("-._") or "task"
    plan = plan.model_copy(update={"tasks": {task: Task(hub=asked.data)}, "max_validation_rows": len(whole.validation)})
    groups = [Group(plan, candidate, task, asked.data, train_rows) for candidate in plan.candidates]
    runs = zip(*(group.finals(()) for group in groups), strict=True)
    cells = [replace(cell, columns=asked.columns) for of_a_seed in runs for cell in of_a_seed]
    folders = {
        cell.key: asked.output / ADAPTERS / f"{task}-{cell.candidate}"
        for cell in cells
        if cell.seed == first and not cell.is_baseline
    }
    for cell in cells:
        settle(cell, base_model.locate(cell.base))
        if cell.key in folders:
            check_target(folders[cell.key], overwrite=True)
    return cells, folders


def _claim(asked: Example, splits: Splits) -> None:
    """Tie the output to data and base, so that runs of others are not taken for its own. Raises RecipeError."""
    if asked.overwrite and asked.output.exists():
        shutil.rmtree(asked.output / ADAPTERS, ignore_errors=True)
        for name in (ROWS, CLAIM, TABLE):
            (asked.output / name).unlink(missing_ok=True)
    rows = hashlib.sha256(repr((splits.labels, splits.train, splits.validation, splits.test)).encode()).hexdigest()
    base = base_model.fingerprint(base_model.locate(asked.plan.base))
    identity = {"rows": rows, "base weights": base}
    path = asked.output / CLAIM
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in identity if held.get(name) != identity[name]]
        if different:
            raise RecipeError(
                f"`{asked.output}` holds an example with other {different[0]}; take another --output or --overwrite"
            )
    elif asked.output.exists() and any(asked.output.iterdir()):
        raise RecipeError(f"`{asked.output}` holds something else; take another --output")
    asked.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _compare(runs: Mapping[str, Sequence[QualityRow]], adapters: Mapping[str, Path], splits: Splits) -> Comparison:
    hits = {name: np.stack([row.predictions.right() for row in rows]) for name, rows in runs.items()}  # [seeds, texts]
    differences = []
    for first, second in combinations(runs, 2):
        between = crossed_difference(hits[first], hits[second])
        reverse = Interval(-between.value, -between.high, -between.low)
        differences.append(
            Difference(first, second, between, first_is=non_inferiority(between), second_is=non_inferiority(reverse))
        )
    sides = [Side(name, rows, crossed_mean(hits[name]), adapters.get(name)) for name, rows in runs.items()]
    return Comparison(sides, differences, floor(splits).get("floor_test_accuracy"), splits.test[0])
