"""How every candidate stands across tasks, with one number of training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decision.bootstrap import Interval, interquartile_mean, mean_of, probability_of_improvement
from decision.measured_cell import MeasuredCell
from decision.rows import BASELINES
from training.grouping import grouped


@dataclass(frozen=True, slots=True)
class Overall:
    """One candidate across the tasks."""

    candidate: str
    method: str
    accuracy: Interval
    """Interquartile mean."""
    mean_difference: Interval | None
    """Less the reference: mean over the tasks, each over seeds and test texts."""
    difference: Interval | None
    """Interquartile mean."""
    probability: Interval | None


@dataclass(frozen=True, slots=True)
class Across:
    """The candidates that were measured on all tasks with one number of training rows."""

    train_rows: int
    tasks: tuple[str, ...]
    num_runs: int
    seeds: tuple[int, ...]
    reference: str | None
    overalls: tuple[Overall, ...]


def stand_across(train_rows: int, cells: Mapping[str, MeasuredCell], reference: str | None, resamples: int) -> Across:
    """cells: by task."""
    runs = [run for cell in cells.values() for run in cell.runs]
    tasks = sorted(cells)
    methods = {run.candidate: run.method for run in runs}
    scores = {  # candidate -> task -> seed -> accuracy
        name: {
            task: {run.seed: run.test_accuracy for run in sorted(found, key=lambda run: run.seed)}
            for task, found in grouped(own, lambda run: run.task).items()
        }
        for name, own in sorted(grouped(runs, lambda run: run.candidate).items())
    }
    complete = {name: found for name, found in scores.items() if len(found) == len(tasks)}
    means = {
        name: interquartile_mean([np.array(list(found[task].values())) for task in tasks], resamples)
        for name, found in complete.items()
    }
    adapters = [name for name in means if methods[name] not in BASELINES]
    if reference is None:
        reference = max(adapters, key=lambda name: means[name].value, default=None)
    overalls = []
    for name in means:
        pairs = _paired(complete[name], complete.get(reference or "", {}), tasks) if name != reference else []
        firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
        overalls.append(
            Overall(
                candidate=name,
                method=methods[name],
                accuracy=means[name],
                mean_difference=_mean_difference(cells.values(), name, reference) if pairs else None,
                difference=interquartile_mean([a - b for a, b in pairs], resamples) if pairs else None,
                probability=probability_of_improvement(firsts, seconds, resamples) if pairs else None,
            )
        )
    counted = [run for run in runs if run.candidate in complete]
    return Across(
        train_rows=train_rows,
        tasks=tuple(tasks),
        num_runs=len(counted),
        seeds=tuple(sorted({run.seed for run in counted})),
        reference=reference if reference in complete else None,
        overalls=tuple(sorted(overalls, key=lambda found: -found.accuracy.value)),
    )


def _mean_difference(cells: Iterable[MeasuredCell], candidate: str, reference: str | None) -> Interval | None:
    found = [cell.difference(candidate, reference or "") for cell in cells]
    differences = [one for one in found if one is not None]
    return mean_of(differences) if len(differences) == len(found) else None


def _paired(
    first: Mapping[str, Mapping[int, float]], second: Mapping[str, Mapping[int, float]], tasks: Sequence[str]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Of every task both accuracies, over the seeds that both have; nothing where a task has no such seed."""
    pairs = []
    for task in tasks:
        shared = [seed for seed in first[task] if seed in second.get(task, {})]
        if not shared:
            return []
        pairs.append(
            (np.array([first[task][seed] for seed in shared]), np.array([second[task][seed] for seed in shared]))
        )
    return pairs
