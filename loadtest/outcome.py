"""What came out of a load test: rows of the same case together, and what sets cases apart."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from decision.rows import LatencyRow, MemoryRow
from loadtest import capacity
from loadtest.timeline import Run

ALL = "all"


@dataclass(frozen=True, slots=True)
class Across:
    """Of one figure over the repeats of a case."""

    median: float
    low: float
    high: float


def across(values: Iterable[float | None]) -> Across | None:
    """None where nothing is known."""
    known = [value for value in values if value is not None]
    return Across(statistics.median(known), min(known), max(known)) if known else None


@dataclass(frozen=True)
class Outcome:
    """One case with its repeats; rows of a search are of one rate."""

    case: str
    rows: Sequence[LatencyRow]

    @property
    def first(self) -> LatencyRow:
        return self.rows[0]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """What sets it apart, by what is varied; which of the requests at the end."""
        return (*parts_of(self.case), "all requests" if self.first.part == ALL else self.first.part)

    @property
    def name(self) -> str:
        rate = f", {self.first.rate_per_s:.4g}/s" if self.is_tried else ""
        return self.case + (f", {self.first.part}" if self.first.part != ALL else "") + rate

    @property
    def is_tried(self) -> bool:
        """Whether its rate was tried in search of the highest one."""
        return self.first.limit_p95_ms is not None

    @property
    def holds(self) -> bool:
        """Whether every repeat stayed within the limit, where one was set."""
        return self.is_tried and all(capacity.holds(row) for row in self.rows)

    def figure(self, of: Callable[[LatencyRow], float | None]) -> Across | None:
        return across(of(row) for row in self.rows)

    def errors(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.errors)
        return dict(total.most_common())


@dataclass(frozen=True)
class Held:
    """What a service held in memory during one case, over its repeats."""

    case: str
    idle: Sequence[MemoryRow]
    load: Sequence[MemoryRow]

    @property
    def first(self) -> MemoryRow:
        return (*self.load, *self.idle)[0]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return parts_of(self.case)


@dataclass(frozen=True)
class Section:
    """One scenario against one target, by one command on one machine."""

    scenario: str
    target: str
    rows: Sequence[LatencyRow | MemoryRow]
    outcomes: Sequence[Outcome]
    memories: Sequence[Held]
    runs: Sequence[Run]

    @property
    def first(self) -> LatencyRow | MemoryRow:
        return self.rows[0]

    @property
    def whole(self) -> list[Outcome]:
        """Without those of some of the requests only."""
        return [outcome for outcome in self.outcomes if outcome.first.part == ALL]

    @property
    def is_search(self) -> bool:
        """Whether the highest rate within a limit was looked for."""
        return any(outcome.is_tried for outcome in self.outcomes)

    @property
    def chosen(self) -> list[Outcome]:
        """All; of a search only the highest rate of each case that holds, or the lowest where none does."""
        if not self.is_search:
            return list(self.outcomes)
        found: dict[str, Outcome] = {}
        for outcome in self.outcomes:
            if outcome.case not in found or outcome.holds:
                found[outcome.case] = outcome
        return list(found.values())

    def runs_of(self, outcome: Outcome) -> list[Run]:
        """Its runs over time, those of all requests."""
        rate = outcome.first.rate_per_s if outcome.is_tried else None
        return [
            one
            for one in self.runs
            if one.timeline.case == outcome.case and (rate is None or one.timeline.rate_per_s == rate)
        ]


@dataclass(frozen=True)
class Dimension:
    """One thing in which cases differ. place: among a case's parts; values: in the order in which they come."""

    place: int
    values: tuple[str, ...]
    name: str = ""
    """Of what is varied, where the values are numbers."""

    def number(self, value: str) -> float:
        """Of a value, where they are numbers."""
        return float(value.rpartition(" ")[2])


def sections(rows: Sequence[LatencyRow | MemoryRow], runs: Sequence[Run]) -> list[Section]:
    """In the order in which they come."""
    groups: dict[tuple[str, ...], list[LatencyRow | MemoryRow]] = {}
    for row in rows:
        made = row.provenance
        key = (row.scenario, row.target, row.base, made.command, made.commit, made.machine, str(made.versions))
        groups.setdefault(key, []).append(row)
    return [_section(found, runs) for found in groups.values()]


def parts_of(case: str) -> tuple[str, ...]:
    return tuple(case.split(", "))


def dimensions(cases: Sequence[tuple[str, ...]]) -> list[Dimension]:
    """What cases differ in. cases: the parts of each; where their numbers differ, whole cases are values."""
    if len(set(map(len, cases))) != 1:
        return []
    columns = [tuple(dict.fromkeys(values)) for values in zip(*cases, strict=True)]
    return [Dimension(place, values, _number_name(values)) for place, values in enumerate(columns) if len(values) > 1]


def _number_name(values: Sequence[str]) -> str:
    found = [re.fullmatch(r"(.+) (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", value) for value in values]
    names = {match[1] if match else "" for match in found}
    return names.pop() if len(names) == 1 else ""


def _section(rows: Sequence[LatencyRow | MemoryRow], runs: Sequence[Run]) -> Section:
    latencies: dict[tuple[str, str, float | None], list[LatencyRow]] = {}
    memories: dict[str, list[MemoryRow]] = {}
    for row in rows:
        if isinstance(row, MemoryRow):
            memories.setdefault(row.case, []).append(row)
        else:
            rate = row.rate_per_s if row.limit_p95_ms is not None else None
            latencies.setdefault((row.case, row.part, rate), []).append(row)
    first = rows[0]
    outcomes = [Outcome(case, found) for (case, _, _), found in latencies.items()]
    if any(outcome.is_tried for outcome in outcomes):
        order = list(dict.fromkeys(outcome.case for outcome in outcomes))
        outcomes.sort(key=lambda outcome: (order.index(outcome.case), outcome.first.rate_per_s or 0.0))
    held = [
        Held(case, [row for row in found if row.moment == "idle"], [row for row in found if row.moment == "load"])
        for case, found in memories.items()
    ]
    ours = (first.scenario, first.target, first.provenance.command)
    mine = [one for one in runs if (one.timeline.scenario, one.timeline.target, one.timeline.command) == ours]
    return Section(first.scenario, first.target, rows, outcomes, held, mine)
