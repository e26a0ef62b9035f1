"""What the service takes, by measurement: the rate and latency of each method, memory, and what strains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from decision.evidence import Evidence
from decision.method_facts import PARAMETER_BYTES
from decision.question import Question
from decision.rows import LatencyRow, MemoryRow, Served

SERVICE, ENGINE = "adaptermux", "adaptermux-engine"
DEVICES: Mapping[str, tuple[str, ...]] = {"cpu": ("cpu",), "gpu": ("cuda",)}
"""What the names of devices in rows begin with."""
PASSES_WAITED = 2
"""A text that arrives while a pass runs waits for its end, then for its own."""
MIXED = ""
"""Stands for cases in which several methods were hot."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of one case."""

    scenario: str
    case: str
    commits: tuple[str, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Point:
    """A rate that was taken with a latency; medians over the repeats of one case."""

    texts_per_s: float
    p95_ms: float
    num_hot: int
    mean_tokens: float | None
    has_own_texts: bool
    """Its texts were of lengths that the case is about."""
    adapter_bytes: float | None
    """Of one adapter; None where the service did not tell."""
    dtype: str
    is_engine: bool
    """Passes of the engine alone, without HTTP."""
    searched_p95_ms: float | None
    """The limit of the search for the highest rate that this was a step of; the lowest of several."""
    source: Source


@dataclass(frozen=True, slots=True)
class Strain:
    """What something that strains the service does to it, next to a case without: factors of at least, at most 1."""

    amount: float
    p95: float
    rate: float
    source: Source


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one replica."""

    base_bytes: int
    """Process and base model, without adapters."""
    bytes_per_registered: float | None
    """What an adapter costs that is known but not in memory; None where it was not measured."""
    most_registered: int
    source: Source


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica takes within the limits."""

    point: Point
    texts_per_s: float
    p95_ms: float


class Serving:
    """All that was measured of one base on one kind of device, on the machine that has the most rows."""

    def __init__(self, evidence: Evidence, device: str, base_id: str) -> None:
        def counts(row: Served) -> bool:
            return row.target in (SERVICE, ENGINE) and row.base == base_id and row.device.startswith(DEVICES[device])

        latencies = [
            row for row in evidence.latencies if counts(row) and row.part == "all" and row.scenario != "adapter-load"
        ]
        memories = [row for row in evidence.memories if counts(row)]
        machines = Counter(row.provenance.machine for row in (*latencies, *memories))
        self.machine = max(sorted(machines), key=lambda name: machines[name], default=None)
        """None: nothing was measured."""
        self.other_machines = tuple(sorted(set(machines) - {self.machine}))
        latencies = [row for row in latencies if row.provenance.machine == self.machine]
        memories = [row for row in memories if row.provenance.machine == self.machine]
        cases = [_Case(rows) for rows in _cases(latencies) if all(row.num_errors == 0 for row in rows)]
        plain = [case for case in cases if not case.is_strained]
        self._points: dict[str, list[Point]] = {}
        found = [(case.method, point) for case in plain if (point := case.point()) is not None]
        usual = [one.mean_tokens for _, one in found if one.mean_tokens is not None and not one.has_own_texts]
        for method, point in found:
            if not point.has_own_texts and usual:
                point = replace(point, mean_tokens=median(usual))  # they differ by what was drawn, not by the case
            self._points.setdefault(method, []).append(point)
        self.missing_parts = _strains(cases, "cache")
        self.changes = _strains(cases, "swap")
        self.memory = _memory(memories)

    def methods(self) -> list[str]:
        """Those that were measured by themselves."""
        return sorted(set(self._points) - {MIXED})

    def points(self, method: str, num_parameters: int) -> list[Point]:
        """What was measured of adapters of a method that are no smaller than these."""
        found = self._points.get(method, [])
        return [one for one in found if one.adapter_bytes and one.adapter_bytes >= PARAMETER_BYTES * num_parameters]

    def base_points(self) -> list[Point]:
        """What the bare base takes at least: whatever was measured with adapters on it."""
        return [point for points in self._points.values() for point in points]

    def capacity(self, points: Iterable[Point], question: Question, strains: Sequence[Strain]) -> Capacity | None:
        """The highest rate that was seen within the limit, of cases no easier than asked; None: there is none."""
        fitting = covering(points, question)
        p95_factor = slower(strains)
        rate_factor = min((strain.rate for strain in strains), default=1.0)
        limit = question.p95_ms
        held = [one for one in fitting if limit is None or one.p95_ms * p95_factor <= limit]
        best = max(held, key=lambda one: (one.texts_per_s, -one.p95_ms, one.source.case), default=None)
        if best is None:
            return None
        return Capacity(best, best.texts_per_s * rate_factor, best.p95_ms * p95_factor)


def covering(points: Iterable[Point], question: Question) -> list[Point]:
    """Those with texts as long and as many hot adapters as asked, or as many as were measured with such texts."""
    texts = [one for one in points if _has_such_texts(one, question.mean_tokens)]

    def most_hot(point: Point) -> int:
        return max(one.num_hot for one in texts if (one.mean_tokens or 0) >= (point.mean_tokens or 0))

    # what a point stands for depends on itself alone, so that shorter texts or fewer adapters never lose one
    return [one for one in texts if one.num_hot >= min(question.num_hot, most_hot(one))]


def are_lower_rates_tried(points: Iterable[Point], lowest: Point) -> bool:
    """Whether a search of what is no harder went down to the lowest rates, and none had a lower p95 than this point.

    It goes below a rate only where that missed its own limit: all the way down where all of them did.
    """
    return any(
        one.searched_p95_ms is not None
        and one.searched_p95_ms < lowest.p95_ms
        and (one.adapter_bytes or 0) <= (lowest.adapter_bytes or 0)
        and (one.mean_tokens or 0) <= (lowest.mean_tokens or 0)
        for one in points
    )


def slower(strains: Sequence[Strain]) -> float:
    """How many times the latency is what it is without them."""
    return max((strain.p95 for strain in strains), default=1.0)


def strain_of(strains: Sequence[Strain], amount: float) -> Strain | None:
    """The mildest that was measured and is no milder than the amount; None beyond what was measured."""
    return min((one for one in strains if one.amount >= amount), key=lambda one: one.amount, default=None)


def _has_such_texts(point: Point, mean_tokens: float | None) -> bool:
    if mean_tokens is None:
        return not point.has_own_texts
    return point.mean_tokens is not None and point.mean_tokens >= mean_tokens


@dataclass(frozen=True)
class _Case:
    """The repeats of one case at one arrival."""

    rows: Sequence[LatencyRow]

    @property
    def method(self) -> str:
        return _method(self.rows[0])

    @property
    def is_strained(self) -> bool:
        """Something else than rate, methods and texts was varied."""
        return self.changes_per_s > 0 or self.missing_part > 0 or "flood" in self.rows[0].workload

    @property
    def changes_per_s(self) -> float:
        return median(sum(row.changes.values()) / row.duration_s for row in self.rows)

    @property
    def missing_part(self) -> float:
        """Of the hot adapters, for which the service had no room."""
        row = self.rows[0]
        room = row.service.get("adapter_bytes")
        if not isinstance(room, int) or not row.hot_bytes:
            return 0.0
        return max(0.0, 1 - room / row.hot_bytes)

    @property
    def source(self) -> Source:
        row = self.rows[0]
        commits = tuple(sorted({one.provenance.commit for one in self.rows}))
        return Source(row.scenario, row.case, commits, row.provenance.command)

    def rate(self) -> float:
        return median(row.texts_per_s for row in self.rows)

    def p95(self) -> float | None:
        found = [row.latency_ms.p95 for row in self.rows if row.latency_ms is not None]
        return median(found) if found else None

    def point(self) -> Point | None:
        p95, first = self.p95(), self.rows[0]
        if p95 is None:
            return None
        tokens = [row.tokens_per_s / row.texts_per_s for row in self.rows if row.tokens_per_s and row.texts_per_s]
        limits = [row.limit_p95_ms for row in self.rows if row.limit_p95_ms is not None]
        is_engine = first.target == ENGINE
        return Point(
            texts_per_s=self.rate(),
            p95_ms=p95 * (PASSES_WAITED if is_engine else 1),
            num_hot=first.num_hot,
            mean_tokens=median(tokens) if tokens else None,
            has_own_texts="texts" in first.workload,
            adapter_bytes=first.hot_bytes / first.num_hot if first.hot_bytes and first.num_hot else None,
            dtype=first.dtype,
            is_engine=is_engine,
            searched_p95_ms=min(limits, default=None),
            source=self.source,
        )


def _cases(rows: Iterable[LatencyRow]) -> list[list[LatencyRow]]:
    """Rows that differ in their repeat only."""
    found: dict[tuple[object, ...], list[LatencyRow]] = {}
    for row in rows:
        arrival = row.num_users, row.rate_per_s
        key = row.target, row.scenario, row.case, row.dtype, row.device, *row.adapters, *arrival
        found.setdefault(key, []).append(row)
    return list(found.values())


def _method(row: Served) -> str:
    return next(iter(row.methods)) if len(row.methods) == 1 else MIXED


def _strains(cases: Sequence[_Case], scenario: str) -> list[Strain]:
    """Each strained case of a scenario against the one without, made to grow with the amount."""
    found = [case for case in cases if case.source.scenario == scenario]
    amounts = [case.missing_part if scenario == "cache" else case.changes_per_s for case in found]
    calm = next((case for case, amount in zip(found, amounts, strict=True) if amount == 0), None)
    if calm is None or (calm_p95 := calm.p95()) is None:
        return []
    strains = [Strain(0.0, 1.0, 1.0, calm.source)]
    for amount, case in sorted(zip(amounts, found, strict=True), key=lambda pair: pair[0]):
        p95 = case.p95()
        if amount > 0 and p95 is not None:
            last = strains[-1]
            # an open loop's rate is its own, so it says nothing of the service
            rate = case.rate() / calm.rate() if case.rows[0].rate_per_s is None and calm.rate() else 1.0
            strains.append(Strain(amount, max(last.p95, p95 / calm_p95), min(last.rate, rate), case.source))
    return strains


def _memory(rows: Sequence[MemoryRow]) -> Memory | None:
    """The base is what is left without adapters, at its highest; None where no row says."""
    held = [(size - (row.resident_adapter_bytes or 0), row) for row in rows if (size := _held(row)) is not None]
    if not held:
        return None
    most, row = max(held, key=lambda one: (one[0], one[1].case))
    return Memory(
        base_bytes=most,
        bytes_per_registered=_bytes_per_registered(rows),
        most_registered=max(one.num_registered for one in rows),
        source=Source(row.scenario, row.case, (row.provenance.commit,), row.provenance.command),
    )


def _held(row: MemoryRow) -> int | None:
    return row.rss_bytes if row.device_bytes is None else row.device_bytes


def _bytes_per_registered(rows: Sequence[MemoryRow]) -> float | None:
    """From the cases of scenario `scale`, which differ in nothing else."""
    sizes: dict[int, list[int]] = {}
    for row in rows:
        if row.scenario == "scale" and row.moment == "load" and row.rss_bytes is not None:
            sizes.setdefault(row.num_registered, []).append(row.rss_bytes - (row.resident_adapter_bytes or 0))
    if len(sizes) < 2:
        return None
    fewest, most = min(sizes), max(sizes)
    return max(0.0, (median(sizes[most]) - median(sizes[fewest])) / (most - fewest))
