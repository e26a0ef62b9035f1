"""How well each candidate does on a task with any number of training rows, and which are not worse than the best."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from statistics import median

import numpy as np
from numpy.typing import NDArray

from decision.bootstrap import Interval
from decision.comparison import MARGIN, SENSITIVITY_MARGINS, Verdict, non_inferiority
from decision.measured_cell import MeasuredCell, measure
from decision.method_facts import facts_of
from decision.rows import FULL, QualityRow

RESAMPLES = 2_000
"""Fewer than a report takes: a decision is asked for while somebody waits."""
MOST_PLACES = 20_000
"""Numbers of rows between two measured ones at which it is looked for where the set of candidates changes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is compared, by its name in the plan, with what its runs say of it at one measured number of rows."""

    name: str
    method: str
    options: dict[str, float]
    recipe: dict[str, object]
    """What its runs have in common."""
    num_adapter_parameters: int
    num_head_parameters: int
    num_labels: int
    adapter_bytes: int
    train_cpu_s: float
    """Median."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One candidate at one number of rows, against the best there."""

    candidate: Candidate
    accuracy: Interval
    difference: Interval
    """Less the best."""
    verdict: Verdict
    holds_strictly: bool
    """Not worse by half of the margin either."""
    seeds: tuple[int, ...]
    commits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Numbers of training rows, from the first to below the end, over which the same candidates are not worse."""

    start: int
    end: int | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Between:
    """The measured sizes around a number of rows; share: how far from the lower to the upper, in the logarithm."""

    lower: int
    upper: int
    share: float


class TaskQuality:
    """Everything that was measured on one task.

    Between measured sizes, values and the ends of intervals run straight in the logarithm of the number of rows, as
    wide as if both sizes erred together. Expected accuracy never falls with more rows: where a larger size did worse,
    the best of the smaller ones stands. Beyond the measured sizes the nearest one stands.
    """

    def __init__(self, task: str, runs: Sequence[QualityRow], resamples: int = RESAMPLES) -> None:
        self.task = task
        self._resamples = resamples
        self._runs = {
            size: [run for run in runs if run.train_rows == size] for size in {run.train_rows for run in runs}
        }
        self.sizes = sorted(size for size, found in self._runs.items() if any(_may_answer(run) for run in found))
        self._cells: dict[int, MeasuredCell] = {}
        self._accuracies: dict[tuple[int, str], Interval] = {}
        self._differences: dict[tuple[int, str, str], Interval | None] = {}

    def is_extrapolated(self, num_rows: int) -> bool:
        return not self.sizes[0] <= num_rows <= self.sizes[-1]

    def sizes_around(self, num_rows: int) -> tuple[int, ...]:
        """The measured sizes that the figures for that many rows come from."""
        between = self._between(num_rows)
        return tuple(sorted({between.lower, between.upper}))

    def names(self, num_rows: int) -> list[str]:
        """Candidates that were measured there and may be recommended, in order."""
        return [name for name in self._names_around(num_rows) if facts_of(self._methods[name]).is_answer]

    def accuracy(self, name: str, num_rows: int) -> Interval | None:
        """Expected, of one candidate; None where it was not measured."""
        if name not in self._names_around(num_rows):
            return None
        between = self._between(num_rows)
        return _mix(self._expected(name, between.lower), self._expected(name, between.upper), between.share)

    def difference(self, first: str, second: str, num_rows: int) -> Interval | None:
        """Of accuracy; None where they were not measured on the same seeds."""
        between = self._between(num_rows)
        low, high = self._differ(between.lower, first, second), self._differ(between.upper, first, second)
        return None if low is None or high is None else _mix(low, high, between.share)

    def best(self, num_rows: int) -> str | None:
        """Of those that may be recommended the one of the highest expected accuracy; of equal ones the smallest."""
        ordered = self._ordered(num_rows)
        return max(ordered, key=lambda name: self._value(name, num_rows), default=None)

    def standings(self, num_rows: int) -> list[Standing]:
        """Every candidate against the best, the smallest adapter first; without those that share no seed with it."""
        best = self.best(num_rows)
        found = []
        for name in self._ordered(num_rows):
            assert best is not None
            accuracy, difference = self.accuracy(name, num_rows), self.difference(name, best, num_rows)
            if accuracy is None or difference is None:
                continue
            runs = [run for size in self.sizes_around(num_rows) for run in self._of(size, name)]
            found.append(
                Standing(
                    candidate=self.candidate(name, num_rows),
                    accuracy=accuracy,
                    difference=difference,
                    verdict=non_inferiority(difference, MARGIN),
                    holds_strictly=difference.low > -min(SENSITIVITY_MARGINS),
                    seeds=tuple(sorted({run.seed for run in runs})),
                    commits=tuple(sorted({run.provenance.commit for run in runs})),
                )
            )
        return found

    def candidate(self, name: str, num_rows: int) -> Candidate:
        """Settings and sizes as at the measured size that is nearest."""
        between = self._between(num_rows)
        runs = self._of(between.lower if between.share < 0.5 else between.upper, name)
        first = runs[0]
        common = {
            key: value for key, value in first.recipe.items() if all(run.recipe.get(key) == value for run in runs)
        }
        options = common.get("options", {})
        return Candidate(
            name=name,
            method=first.method,
            options=dict(options) if isinstance(options, dict) else {},
            recipe=common,
            num_adapter_parameters=first.num_adapter_parameters,
            num_head_parameters=first.num_head_parameters,
            num_labels=first.num_labels,
            adapter_bytes=max(run.adapter_bytes for run in runs),
            train_cpu_s=median(run.train_cpu_s for run in runs),
        )

    def full(self, num_rows: int) -> Interval | None:
        """What fine-tuning all weights would bring beyond the best; None where it was not measured."""
        names = [name for name in self._names_around(num_rows) if self._methods[name] == FULL]
        best = self.best(num_rows)
        return self.difference(names[0], best, num_rows) if names and best is not None else None

    def stretches(self) -> list[Stretch]:
        """Where the set of candidates that are not worse changes, over all numbers of rows."""
        found: list[Stretch] = []
        for place in self._places_of_change():
            names = tuple(one.candidate.name for one in self.standings(place) if one.verdict == "not worse")
            if not found or found[-1].names != names:
                if found:
                    found[-1] = Stretch(found[-1].start, place, found[-1].names)
                found.append(Stretch(place if found else 1, None, names))
        return found

    @cached_property
    def max_length(self) -> int | None:
        """Tokens after which the texts were cut, in the runs that say so; the shortest of them."""
        lengths = [run.recipe.get("max_length") for runs in self._runs.values() for run in runs]
        return min((length for length in lengths if isinstance(length, int)), default=None)

    @cached_property
    def _methods(self) -> dict[str, str]:
        return {run.candidate: run.method for runs in self._runs.values() for run in runs}

    def _names_around(self, num_rows: int) -> list[str]:
        between = self._between(num_rows)
        lower, upper = ({run.candidate for run in self._runs[size]} for size in (between.lower, between.upper))
        return sorted(lower & upper)

    def _ordered(self, num_rows: int) -> list[str]:
        """The smallest adapter first."""
        between = self._between(num_rows)
        names = self.names(num_rows)
        return sorted(names, key=lambda name: (self._of(between.lower, name)[0].adapter_bytes, name))

    def _between(self, num_rows: int) -> _Between:
        sizes = self.sizes
        if num_rows <= sizes[0]:
            return _Between(sizes[0], sizes[0], 0.0)
        if num_rows >= sizes[-1]:
            return _Between(sizes[-1], sizes[-1], 0.0)
        place = bisect_right(sizes, num_rows)
        lower, upper = sizes[place - 1], sizes[place]
        if num_rows == lower:
            return _Between(lower, lower, 0.0)
        return _Between(lower, upper, log(num_rows / lower) / log(upper / lower))

    def _of(self, size: int, name: str) -> list[QualityRow]:
        return sorted((run for run in self._runs[size] if run.candidate == name), key=lambda run: run.seed)

    def _cell(self, size: int) -> MeasuredCell:
        if size not in self._cells:
            self._cells[size] = measure(self._runs[size], self._resamples)
        return self._cells[size]

    def _value(self, name: str, num_rows: int) -> float:
        found = self.accuracy(name, num_rows)
        assert found is not None
        return found.value

    def _expected(self, name: str, size: int) -> Interval:
        """The best of this size and the smaller ones."""
        measured = [one for one in self.sizes if one <= size and self._of(one, name)]
        for one in measured:
            if (one, name) not in self._accuracies:
                self._accuracies[one, name] = self._cell(one).accuracy(name)
        return max((self._accuracies[one, name] for one in measured), key=lambda interval: interval.value)

    def _differ(self, size: int, first: str, second: str) -> Interval | None:
        key = size, first, second
        if key not in self._differences:
            self._differences[key] = self._cell(size).difference(first, second)
        return self._differences[key]

    def _places_of_change(self) -> list[int]:
        """Every number of rows at which the set may differ from that of the number before."""
        places = {1, *self.sizes, *(size + 1 for size in self.sizes)}
        for lower, upper in zip(self.sizes, self.sizes[1:], strict=False):
            places |= set(self._changes_between(lower, upper))
        return sorted(places)

    def _changes_between(self, lower: int, upper: int) -> list[int]:
        if upper - lower < 2:
            return []
        inside = np.unique(np.geomspace(lower + 1, upper - 1, min(upper - lower - 1, MOST_PLACES)).round().astype(int))
        shares = np.log(inside / lower) / log(upper / lower)
        names = self._ordered(int(inside[0]))
        if not names:
            return []

        def run(ends: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
            low, high = np.array(ends).T
            return np.outer(1 - shares, low) + np.outer(shares, high)  # [places, names]

        means = run([(self._expected(name, lower).value, self._expected(name, upper).value) for name in names])
        best = means.argmax(axis=1)  # the first of equal ones, as in `best`
        holds = np.zeros((len(inside), len(names)), dtype=bool)
        for index in np.unique(best):
            ends = []
            for name in names:
                pair = self._differ(lower, name, names[index]), self._differ(upper, name, names[index])
                ends.append((-1.0, -1.0) if pair[0] is None or pair[1] is None else (pair[0].low, pair[1].low))
            chosen = best == index
            holds[chosen] = (run(ends) > -MARGIN)[chosen]
        changed = np.flatnonzero((holds[1:] != holds[:-1]).any(axis=1)) + 1
        return [int(inside[0]), *(int(inside[place]) for place in changed)]


def _may_answer(run: QualityRow) -> bool:
    return facts_of(run.method).is_answer


def _mix(low: Interval, high: Interval, share: float) -> Interval:
    ends = zip((low.value, low.low, low.high), (high.value, high.low, high.high), strict=True)
    return Interval(*((1 - share) * a + share * b for a, b in ends))
