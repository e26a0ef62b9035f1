"""How every candidate stands in one cell: a task with a number of training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import numpy as np

from decision.bootstrap import Interval
from decision.comparison import MARGIN, SENSITIVITY_MARGINS, Verdict, holm, non_inferiority, sign_flip_p
from decision.measured_cell import MeasuredCell
from decision.outcomes import expected_best, has_collapsed, steps_to_share
from decision.rows import BASELINES, MAJORITY, QualityRow, TrialRow
from training.grouping import grouped

Place = tuple[str, int]
"""Of a cell: task and number of training rows."""


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


def stand(place: Place, measured: MeasuredCell, trials: Sequence[TrialRow], reference: str | None) -> Cell:
    """reference: whom the others are compared with; None takes the adapter of the highest mean accuracy."""
    task, train_rows = place
    runs = measured.runs
    by_candidate = grouped(runs, lambda run: run.candidate)
    accuracies = {name: measured.accuracy(name) for name in by_candidate}
    if reference is None:
        reference = _best(by_candidate, accuracies)
    compared = [name for name in by_candidate if name != reference] if reference in by_candidate else []
    comparisons = _compare_all(measured, compared, reference)
    majority = {run.seed: run.test_accuracy for run in runs if run.method == MAJORITY}
    tried = grouped(trials, lambda row: row.candidate)
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
    by_seed = grouped(trials, lambda row: row.seed)
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


def _best(by_candidate: Mapping[str, Sequence[QualityRow]], accuracies: Mapping[str, Interval]) -> str | None:
    """The adapter of the highest mean accuracy; of equal ones the smallest."""
    adapters = [name for name, runs in by_candidate.items() if runs[0].method not in BASELINES]
    return min(
        adapters, key=lambda name: (-accuracies[name].value, by_candidate[name][0].adapter_bytes, name), default=None
    )


def _knobs(trials: Sequence[TrialRow]) -> set[str]:
    """The settings that differ between the trials of a candidate: what was tuned."""
    names = {name for trial in trials for name in trial.recipe}
    return {name for name in names if len({str(trial.recipe[name]) for trial in trials if name in trial.recipe}) > 1}


def _is_at_end(knob: str, runs: Sequence[QualityRow], trials: Sequence[TrialRow]) -> bool:
    tried, chosen = _values(trials, {knob}), _values(runs, {knob})
    return any(value in (tried[0], tried[-1]) for value in chosen)


def _values(rows: Sequence[QualityRow | TrialRow], knobs: set[str]) -> tuple[float, ...]:
    found = {row.recipe[name] for row in rows for name in knobs if name in row.recipe}
    return tuple(sorted(float(value) for value in found if isinstance(value, int | float)))
