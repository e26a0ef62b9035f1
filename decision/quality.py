"""How well each candidate does on a task with any number of training rows, and which do well enough.

Candidates are judged against one that is named, not found, the reference. The best of thirteen would be no fair judge:
it is in part the luckiest, and what it owes to luck the others would be blamed for (`docs/log.md`).
Where some are shown to be better than the reference, the best of these takes its place: the yardstick.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log
from statistics import median

from decision.bootstrap import Interval
from decision.comparison import MARGIN, SENSITIVITY_MARGINS, Verdict, non_inferiority, shown_better
from decision.measured_cell import MeasuredCell, measure
from decision.method_facts import facts_of
from decision.rows import FULL, QualityRow


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
    """One candidate at one number of rows, against the yardstick there."""

    candidate: Candidate
    accuracy: Interval
    difference: Interval
    """Less the yardstick."""
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

    reference: the candidate that the others are judged against; None takes the best of each size, and its luck.
    """

    def __init__(self, task: str, runs: Sequence[QualityRow], reference: str | None = None) -> None:
        self.task = task
        self.reference = reference
        self._runs = {
            size: [run for run in runs if run.train_rows == size] for size in {run.train_rows for run in runs}
        }
        answering = {size: [run for run in found if _may_answer(run)] for size, found in self._runs.items()}
        # where only models of the bare base's cost were run so far, nothing tells what adapters would add to them
        full = [
            size for size, found in answering.items() if not all(facts_of(run.method).is_base_cost for run in found)
        ]
        self.sizes = sorted(full or (size for size, found in answering.items() if found))
        self._runs_of: dict[tuple[int, str], list[QualityRow]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            self._runs_of.setdefault((run.train_rows, run.candidate), []).append(run)
        self._better: dict[tuple[int, tuple[str, ...]], list[str]] = {}
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
        """Of those that may be recommended the one that did best at the nearest measured size; of equal ones the
        smallest."""
        near = self._near(num_rows)
        return max(self._ordered(num_rows), key=lambda name: self._expected(name, near).value, default=None)

    def better_than_reference(self, num_rows: int) -> list[str]:
        """Those that are shown to be better than the reference at the nearest measured size; the clearest lead first.

        Empty where the reference was not measured.
        """
        key = self._near(num_rows), tuple(self._ordered(num_rows))
        if key not in self._better:
            self._better[key] = self._shown_better(num_rows)
        return self._better[key]

    def yardstick(self, num_rows: int) -> str | None:
        """What candidates are judged against: the reference, or the first of those that are shown to be better.

        Where there is no reference, or none was measured, it is the best. None where nothing was measured.
        """
        if self.reference is None or self.reference not in self.names(num_rows):
            return self.best(num_rows)
        return next(iter(self.better_than_reference(num_rows)), self.reference)

    def standings(self, num_rows: int) -> list[Standing]:
        """Every candidate against the yardstick, the smallest adapter first; without those that share no seed."""
        yardstick = self.yardstick(num_rows)
        found = []
        for name in self._ordered(num_rows):
            assert yardstick is not None
            accuracy, difference = self.accuracy(name, num_rows), self.difference(name, yardstick, num_rows)
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
        runs = self._of(self._near(num_rows), name)
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
        """What fine-tuning all weights would bring beyond the yardstick; None where it was not measured."""
        names = [name for name in self._names_around(num_rows) if self._methods[name] == FULL]
        yardstick = self.yardstick(num_rows)
        return self.difference(names[0], yardstick, num_rows) if names and yardstick is not None else None

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

    def _near(self, num_rows: int) -> int:
        """The measured size that is nearest, in the logarithm."""
        between = self._between(num_rows)
        return between.lower if between.share < 0.5 else between.upper

    def _shown_better(self, num_rows: int) -> list[str]:
        leads = self._leads(num_rows)
        found = [name for name, is_better in zip(leads, shown_better(list(leads.values())), strict=True) if is_better]
        return sorted(found, key=lambda name: -leads[name].value)

    def _leads(self, num_rows: int) -> dict[str, Interval]:
        """Of every other candidate over the reference, at the nearest measured size."""
        if self.reference is None or self.reference not in self.names(num_rows):
            return {}
        near, others = self._near(num_rows), [name for name in self._ordered(num_rows) if name != self.reference]
        found = {name: self._differ(near, name, self.reference) for name in others}
        return {name: lead for name, lead in found.items() if lead is not None}

    def _of(self, size: int, name: str) -> list[QualityRow]:
        """In the order of seeds."""
        return self._runs_of.get((size, name), [])

    def _cell(self, size: int) -> MeasuredCell:
        if size not in self._cells:
            self._cells[size] = measure(self._runs[size])
        return self._cells[size]

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

    def _changes_between(self, lower: int, upper: int) -> Iterator[int]:
        """Where the nearest size becomes the other one, and where the lower end of a difference crosses the margin."""
        inside = range(lower + 1, upper)
        if not inside or not self.names(inside[0]):
            return
        shares = [0.5]
        for yardstick in {self.yardstick(inside[0]), self.yardstick(inside[-1])}:
            assert yardstick is not None
            for name in self.names(inside[0]):
                low, high = self._differ(lower, name, yardstick), self._differ(upper, name, yardstick)
                if low is not None and high is not None and (low.low > -MARGIN) != (high.low > -MARGIN):
                    shares.append((low.low + MARGIN) / (low.low - high.low))
        for share in shares:
            place = ceil(lower * (upper / lower) ** share)
            yield from (one for one in (place - 1, place, place + 1) if one in inside)  # where it is rounded


def _may_answer(run: QualityRow) -> bool:
    return facts_of(run.method).is_answer


def _mix(low: Interval, high: Interval, share: float) -> Interval:
    ends = zip((low.value, low.low, low.high), (high.value, high.low, high.high), strict=True)
    return Interval(*((1 - share) * a + share * b for a, b in ends))
