"""What rows of evidence say: every candidate in a cell (a task with a number of training rows), and across tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from decision.bootstrap import (
    RESAMPLES,
    Interval,
    interquartile_mean,
    mean_of,
    probability_of_improvement,
)
from decision.comparison import MARGIN, SENSITIVITY_MARGINS, Verdict, holm, non_inferiority, sign_flip_p
from decision.measured_cell import MeasuredCell, measure
from decision.outcomes import expected_best, has_collapsed, steps_to_share
from decision.rows import BASELINES, MAJORITY, QualityRow, RowsError, TrialRow
from server.errors import DataError

Row = QualityRow | TrialRow
Place = tuple[str, int]
"""Of a cell: task and number of training rows."""
Key = TypeVar("Key")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against the cell's reference, over the seeds that both have."""

    num_seeds: int
    difference: Interval
    p: float
    holm_p: float
    """Adjusted for all comparisons of the cell."""
    verdict: Verdict
    sensitivity: tuple[Verdict, ...]
    """At the margins of `decision.comparison.SENSITIVITY_MARGINS`."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One candidate in one cell; plain numbers are means over its seeds."""

    candidate: str
    method: str
    seeds: tuple[int, ...]
    tuned: tuple[float, ...]
    """What was chosen of the values that its trials tried."""
    is_at_end: bool
    """Whether that is the lowest or the highest of them: the best may lie beyond."""
    num_adapter_parameters: int
    num_head_parameters: int
    adapter_bytes: int
    accuracy: Interval
    seed_sd: float | None
    macro_f1: float
    ece: float
    ece_calibrated: float
    steps_to_share: float | None
    """Median over seeds."""
    collapse_rate: float | None
    """None where no run of the majority is there to compare with."""
    train_cpu_s: float
    peak_memory_bytes: int | None
    """The highest of all seeds."""
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a candidate's trials brought."""

    candidate: str
    method: str
    seeds: tuple[int, ...]
    num_trials: int
    """Per seed; the fewest, should they differ."""
    tried: tuple[float, ...]
    expected_best: tuple[float, ...]
    """Validation accuracy after 1, 2, ... trials, mean over seeds."""


@dataclass(frozen=True, slots=True)
class Cell:
    task: str
    train_rows: int
    num_runs: int
    seeds: tuple[int, ...]
    num_test_rows: int
    reference: str | None
    standings: tuple[Standing, ...]
    tunings: tuple[Tuning, ...]


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


@dataclass(frozen=True, slots=True)
class Summary:
    num_quality_rows: int
    num_trial_rows: int
    cells: tuple[Cell, ...]
    across: tuple[Across, ...]
    missing: tuple[str, ...]
    """What other cells have and one has not, a sentence each."""
    commits: tuple[str, ...]
    machines: tuple[str, ...]
    versions: tuple[str, ...]
    commands: tuple[str, ...]


def summarise(rows: Iterable[Row], reference: str | None = None, resamples: int = RESAMPLES) -> Summary:
    """Put rows in cells and compare.

    reference: the candidate that the others are compared with; None takes the best adapter of each cell, whose luck
    makes the others look worse than they are. Raises DataError.
    """
    kept = _unique(rows)
    runs = [row for row in kept if isinstance(row, QualityRow)]
    trials = [row for row in kept if isinstance(row, TrialRow)]
    if not runs:
        raise DataError("there is no row of kind `quality` that is asked for; run the grid first")
    candidates = sorted({row.candidate for row in runs})
    if reference is not None and reference not in candidates:
        raise DataError(f"the reference `{reference}` is in no row; there are {', '.join(candidates)}")
    tried = _grouped(trials, lambda row: (row.task, row.train_rows))
    places = _grouped(runs, lambda row: (row.task, row.train_rows))
    try:
        measured = {place: measure(found) for place, found in places.items()}
    except RowsError as error:
        raise DataError(str(error)) from error
    cells = tuple(_cell(place, found, tried.get(place, []), reference) for place, found in sorted(measured.items()))
    sizes = sorted({train_rows for _, train_rows in places})
    sources = [row.provenance for row in kept]
    return Summary(
        num_quality_rows=len(runs),
        num_trial_rows=len(trials),
        cells=cells,
        across=tuple(
            _across(size, {task: found for (task, own), found in measured.items() if own == size}, reference, resamples)
            for size in sizes
        ),
        missing=tuple(_missing(places)),
        commits=tuple(sorted({source.commit for source in sources})),
        machines=tuple(sorted({source.machine for source in sources})),
        versions=tuple(
            sorted({", ".join(f"{k} {v}" for k, v in sorted(source.versions.items())) for source in sources})
        ),
        commands=tuple(sorted({source.command for source in sources})),
    )


def _unique(rows: Iterable[Row]) -> list[Row]:
    """Each row once, in an order of their own. Raises DataError where one run has two results."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        rate = row.recipe if isinstance(row, TrialRow) else None
        key = (row.kind, row.task, row.train_rows, row.candidate, row.seed, str(rate))
        if found.setdefault(key, row) != row:
            raise DataError(
                f"`{row.candidate}` on `{row.task}` with {row.train_rows} rows and seed {row.seed} is there twice with "
                f"different results, of plans `{found[key].plan}` and `{row.plan}`; name the file of one with --plan, "
                "or fewer files"
            )
    return [found[key] for key in sorted(found, key=str)]


def _cell(place: Place, measured: MeasuredCell, trials: Sequence[TrialRow], reference: str | None) -> Cell:
    task, train_rows = place
    runs = measured.runs
    by_candidate = _grouped(runs, lambda run: run.candidate)
    accuracies = {name: measured.accuracy(name) for name in by_candidate}
    if reference is None:
        reference = _best(by_candidate, accuracies)
    compared = [name for name in by_candidate if name != reference] if reference in by_candidate else []
    comparisons = _compare_all(measured, compared, reference)
    majority = {run.seed: run.test_accuracy for run in runs if run.method == MAJORITY}
    tried = _grouped(trials, lambda row: row.candidate)
    standings = [
        _standing(found, tried.get(name, []), accuracies[name], majority, comparisons.get(name))
        for name, found in by_candidate.items()
    ]
    return Cell(
        task=task,
        train_rows=train_rows,
        num_runs=len(runs),
        seeds=tuple(sorted({run.seed for run in runs})),
        num_test_rows=measured.hits.shape[1],
        reference=reference if reference in by_candidate else None,
        standings=tuple(sorted(standings, key=lambda found: (found.adapter_bytes, found.candidate))),
        tunings=tuple(_tuning(found) for _, found in sorted(tried.items())),
    )


def _compare_all(measured: MeasuredCell, candidates: Sequence[str], reference: str | None) -> dict[str, Comparison]:
    """Against the reference; those that share no seed with it are left out."""
    if reference is None:
        return {}
    differences = {name: measured.difference(name, reference) for name in candidates}
    pairs = {name: measured.pairs(name, reference) for name, difference in differences.items() if difference}
    p_values = [sign_flip_p(measured.hits[a].sum(axis=1) - measured.hits[b].sum(axis=1)) for a, b in pairs.values()]
    compared = {}
    for (name, (seeds, _)), p, holm_p in zip(pairs.items(), p_values, holm(p_values), strict=True):
        difference = differences[name]
        assert difference is not None
        compared[name] = Comparison(
            num_seeds=len(seeds),
            difference=difference,
            p=p,
            holm_p=holm_p,
            verdict=non_inferiority(difference, MARGIN),
            sensitivity=tuple(non_inferiority(difference, margin) for margin in SENSITIVITY_MARGINS),
        )
    return compared


def _standing(
    runs: Sequence[QualityRow],
    trials: Sequence[TrialRow],
    accuracy: Interval,
    majority: Mapping[int, float],
    comparison: Comparison | None,
) -> Standing:
    steps = [step for run in runs if (step := steps_to_share(run.curve)) is not None]
    collapsed = [has_collapsed(run.test_accuracy, majority[run.seed]) for run in runs if run.seed in majority]
    memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    first = runs[0]
    return Standing(
        candidate=first.candidate,
        method=first.method,
        seeds=tuple(run.seed for run in runs),
        tuned=_values(runs, _knobs(trials)),
        is_at_end=any(_is_at_end(name, runs, trials) for name in _knobs(trials)),
        num_adapter_parameters=first.num_adapter_parameters,
        num_head_parameters=first.num_head_parameters,
        adapter_bytes=max(run.adapter_bytes for run in runs),
        accuracy=accuracy,
        seed_sd=stdev(run.test_accuracy for run in runs) if len(runs) > 1 else None,
        macro_f1=fmean(run.test_macro_f1 for run in runs),
        ece=fmean(run.test_ece for run in runs),
        ece_calibrated=fmean(run.test_ece_calibrated for run in runs),
        steps_to_share=float(median(steps)) if steps else None,
        collapse_rate=fmean(collapsed) if collapsed and first.method != MAJORITY else None,
        train_cpu_s=fmean(run.train_cpu_s for run in runs),
        peak_memory_bytes=max(memory, default=None),
        comparison=comparison,
    )


def _tuning(trials: Sequence[TrialRow]) -> Tuning:
    by_seed = _grouped(trials, lambda row: row.seed)
    num_trials = min(map(len, by_seed.values()))
    curves = [expected_best([row.validation_accuracy for row in found])[:num_trials] for found in by_seed.values()]
    return Tuning(
        candidate=trials[0].candidate,
        method=trials[0].method,
        seeds=tuple(sorted(by_seed)),
        num_trials=num_trials,
        tried=_values(trials, _knobs(trials)),
        expected_best=tuple(map(float, np.mean(curves, axis=0))),
    )


def _across(train_rows: int, cells: Mapping[str, MeasuredCell], reference: str | None, resamples: int) -> Across:
    """cells: by task."""
    runs = [run for cell in cells.values() for run in cell.runs]
    tasks = sorted(cells)
    methods = {run.candidate: run.method for run in runs}
    scores = {  # candidate -> task -> seed -> accuracy
        name: {
            task: {run.seed: run.test_accuracy for run in sorted(found, key=lambda run: run.seed)}
            for task, found in _grouped(own, lambda run: run.task).items()
        }
        for name, own in sorted(_grouped(runs, lambda run: run.candidate).items())
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


def _best(by_candidate: Mapping[str, Sequence[QualityRow]], accuracies: Mapping[str, Interval]) -> str | None:
    """The adapter of the highest mean accuracy; of equal ones the smallest."""
    adapters = [name for name, runs in by_candidate.items() if runs[0].method not in BASELINES]
    return min(
        adapters, key=lambda name: (-accuracies[name].value, by_candidate[name][0].adapter_bytes, name), default=None
    )


def _missing(places: Mapping[Place, Sequence[QualityRow]]) -> Iterable[str]:
    """What a cell lacks of the candidates that others have, and a candidate of its cell's seeds."""
    candidates = sorted({run.candidate for runs in places.values() for run in runs})
    sizes = sorted({train_rows for _, train_rows in places})
    for task in sorted({task for task, _ in places}):
        for size in sizes:
            runs = places.get((task, size))
            if runs is None:
                yield f"`{task}` with {size:,} rows: nothing"
                continue
            seeds = {run.seed for run in runs}
            for name in candidates:
                lacking = seeds - {run.seed for run in runs if run.candidate == name}
                if lacking == seeds:
                    yield f"`{task}` with {size:,} rows: no `{name}`"
                elif lacking:
                    named = ", ".join(map(str, sorted(lacking)))
                    yield f"`{task}` with {size:,} rows: `{name}` lacks seed{'s'[: len(lacking) > 1]} {named}"


def _knobs(trials: Sequence[TrialRow]) -> set[str]:
    """The settings that differ between the trials of a candidate: what was tuned."""
    names = {name for trial in trials for name in trial.recipe}
    return {name for name in names if len({str(trial.recipe[name]) for trial in trials if name in trial.recipe}) > 1}


def _is_at_end(knob: str, runs: Sequence[QualityRow], trials: Sequence[TrialRow]) -> bool:
    tried, chosen = _values(trials, {knob}), _values(runs, {knob})
    return any(value in (tried[0], tried[-1]) for value in chosen)


def _values(rows: Sequence[Row], knobs: set[str]) -> tuple[float, ...]:
    found = {row.recipe[name] for row in rows for name in knobs if name in row.recipe}
    return tuple(sorted(float(value) for value in found if isinstance(value, int | float)))


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by their key, in the order in which they come."""
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
