"""What the report of a load test draws: over time, as a distribution, against what is varied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from decision.rows import LatencyRow, MemoryRow, Spread
from loadtest.drawing import MOST_LINES, Line, Panel, Plots, Row, Scale, dots, panels
from loadtest.outcome import ALL, Across, Dimension, Held, Outcome, Section, across, dimensions
from loadtest.timeline import Run

PERCENTILES = (50, 95, 99)
MOST_SPANS = 120
FEWEST_REQUESTS = 50
"""In a span of time, so that its percentiles say something."""
MOST_FAILURES = 40
LONG_S = 60
"""The shortest run whose memory over time is worth a look."""
NUM_LEVELS = 60
MIB = 2**20
TIERS: Mapping[str, Callable[[MemoryRow], float | None]] = {
    "resident": lambda row: row.rss_bytes,
    "anonymous": lambda row: row.anonymous_bytes,
    "accelerator": lambda row: row.device_bytes,
    "adapters, where the base computes": lambda row: row.resident_adapter_bytes,
    "adapters, kept by the host": lambda row: row.host_adapter_bytes,
}


def all_of(section: Section) -> list[Plots]:
    """Every plot for which there are figures."""
    drawn = [over_time(section), distribution(section), rates(section), throughput(section), memory(section),
             memory_over_time(section), batches(section)]  # fmt: skip
    return [plots for plots in drawn if plots is not None]


def over_time(section: Section) -> Plots | None:
    """Percentiles of each span of time; None without raw samples."""
    found = []
    for outcome in section.chosen:
        runs = [one for one in section.runs_of(outcome) if len(one.samples)]
        if outcome.first.part == ALL and runs:
            found.append(_over_time(outcome.name, runs))
    caption = "50th, 95th and 99th percentile of latency by when requests were due, repeats over each other"
    caption += _of_which(section)
    return _unless_empty(
        "Latency over time", f"{caption}; crosses at the top mark requests that failed.", found,
        Scale("seconds since the warm-up"), Scale("latency, ms", is_log=True), [f"p{one}" for one in PERCENTILES],
    )  # fmt: skip


def distribution(section: Section) -> Plots | None:
    """The share of requests that took longer, a line a case: from raw samples where there are some."""
    found = [(outcome, _survival(section, outcome)) for outcome in section.chosen]
    grid = _Grid.of([outcome for outcome, (latencies, _) in found if latencies], has_x=False)
    by_name = {outcome.name: points for outcome, points in found}
    lines = [
        Panel(
            title,
            f"Share of requests slower than a time, {title or 'all cases'}.",
            [Line(number, *by_name[outcome.name]) for number, _, outcome in cells],
        )
        for title, cells in grid.panels.items()
    ]
    return _unless_empty(
        "Latency as a distribution",
        f"The share of requests that took longer{_of_which(section)}; the further left, the better.",
        lines, Scale("latency, ms", is_log=True), Scale("share of requests slower", is_log=True, is_share=True),
        grid.legend,
    )  # fmt: skip


def rates(section: Section) -> Plots | None:
    """The 95th percentile against the rate that arrives, where the highest one was looked for."""
    if not section.is_search:
        return None
    cases = {outcome.case: outcome for outcome in section.outcomes if outcome.is_tried}
    grid = _Grid.of([*cases.values()], has_x=False)
    found = []
    for title, cells in grid.panels.items():
        lines = []
        for number, _, case in cells:
            tried = [outcome for outcome in section.outcomes if outcome.case == case.case]
            known = [(outcome.first.rate_per_s or 0.0, _p95(outcome)) for outcome in tried]
            lines.append(_line(number, [(rate, figure) for rate, figure in known if figure is not None]))
        limit = cells[0][2].first.limit_p95_ms
        found.append(Panel(title, f"95th percentile against rate, {title or 'all cases'}.", lines, limit))
    return _unless_empty(
        "Latency against the rate of requests",
        "The 95th percentile of each rate that was tried; the dashed line is the limit.",
        found, Scale("requests arriving a second", is_log=True), Scale("p95, ms", is_log=True), grid.legend,
    )  # fmt: skip


def throughput(section: Section) -> Plots | None:
    """Requests a second against the number that is varied, or by case where none is; a search says it with `rates`."""
    if section.is_search:
        return None
    return _against(section.chosen, lambda outcome: outcome.figure(lambda row: row.throughput_per_s),
                    "Throughput", "Requests answered rightly a second", "requests/s")  # fmt: skip


def memory(section: Section) -> Plots | None:
    """By tier, the most under load: against the number of adapters where that varies, else by case."""
    tiers = {name: of for name, of in TIERS.items() if any(of(row) for held in section.memories for row in held.load)}
    if not tiers:
        return None
    for name, of_row in _ADAPTERS.items():
        counts = sorted({of_row(held.first) for held in section.memories})
        if len(counts) > 1:
            return _memory_against(section.memories, tiers, f"adapters {name}", of_row, counts)
    if len(section.memories) < 2:
        return None  # the table says it
    rows = [
        Row(held.case, [_scaled(across(of(row) for row in held.load), MIB) for of in tiers.values()])
        for held in section.memories
    ]
    return dots(
        "Memory", "The most that each case held under load, by tier.", rows, Scale("MiB", starts_at_zero=True), [*tiers]
    )


def memory_over_time(section: Section) -> Plots | None:
    """Resident memory and the adapters in it, of long runs; None without a folder that says."""
    found = []
    for outcome in section.chosen:
        if outcome.first.part != ALL or outcome.first.duration_s < LONG_S:
            continue
        runs = [one.timeline for one in section.runs_of(outcome)]
        lines = []
        for number, name in enumerate(("rss_bytes", "resident_adapter_bytes")):
            x, y = list[float](), list[float]()
            for timeline in runs:
                known = [
                    (at - timeline.start_s, held / MIB)
                    for at, held in zip(timeline.at_s, getattr(timeline, name), strict=True)
                    if held is not None
                ]
                step = max(1, len(known) // (2 * MOST_SPANS))
                x += [at for at, _ in known[::step]] + [float("nan")]
                y += [held for _, held in known[::step]] + [float("nan")]
            if len(x) > len(runs):
                lines.append(Line(number, x, y))
        if lines:
            found.append(Panel(outcome.name, f"Memory over time, {outcome.name}.", lines))
    return _unless_empty(
        "Memory over time",
        "Resident memory of the service, and the weights of adapters where the base computes, during each case.",
        found, Scale("seconds since the warm-up"), Scale("MiB", starts_at_zero=True), ["resident", "adapters"],
    )  # fmt: skip


def batches(section: Section) -> Plots | None:
    """Means a forward pass; None where the service does not tell."""
    names = ("texts", "adapters", "methods")
    rows = [
        Row(outcome.name, [outcome.figure(lambda row, name=name: row.batch.get(name)) for name in names])  # type: ignore[misc]
        for outcome in section.chosen
        if outcome.first.part == ALL and outcome.first.batch
    ]
    if len(rows) < 2:
        return None  # the table says it
    caption = "How many texts, different adapters and different methods a forward pass held on average."
    return dots("Batches", caption, rows, Scale("mean of a forward pass", is_log=True), names)


class _Case(Protocol):
    @property
    def parts(self) -> tuple[str, ...]: ...


Item = TypeVar("Item", bound=_Case)


@dataclass(frozen=True)
class _Grid(Generic[Item]):
    """Cases in panels and lines, by what sets them apart. panels: title -> (number of the line, value of x, case)."""

    x: Dimension | None
    legend: tuple[str, ...]
    panels: Mapping[str, Sequence[tuple[int, float, Item]]]

    @classmethod
    def of(cls, items: Sequence[Item], has_x: bool) -> _Grid[Item]:
        """has_x: whether what is varied in numbers becomes an axis; what has the most values becomes lines."""
        parts = [item.parts for item in items]
        if len(set(map(len, parts))) > 1:
            parts = [(", ".join(part for part in one if part != "all requests"),) for one in parts]
        known = dimensions(parts)
        numbers = [one for one in known if one.name] if has_x else []
        x = max(numbers, key=lambda one: len(one.values), default=None)
        rest = [one for one in known if one is not x]
        fitting = [one for one in rest if len(one.values) <= MOST_LINES]
        lines = max(fitting, key=lambda one: len(one.values), default=None)
        found: dict[str, list[tuple[int, float, Item]]] = {}
        for item, own in zip(items, parts, strict=True):
            title = ", ".join(own[one.place] for one in rest if one is not lines)
            number = lines.values.index(own[lines.place]) if lines else 0
            found.setdefault(title, []).append((number, x.number(own[x.place]) if x else 0.0, item))
        return cls(x, lines.values if lines else (), found)


_ADAPTERS: Mapping[str, Callable[[MemoryRow], int]] = {
    "registered": lambda row: row.num_registered,
    "hot": lambda row: row.num_hot,
}


def _against(
    outcomes: Sequence[Outcome], of: Callable[[Outcome], Across | None], title: str, what: str, unit: str
) -> Plots | None:
    grid = _Grid.of(outcomes, has_x=True)
    note = "medians over repeats, with a line from the lowest to the highest"
    if grid.x is None:
        if len(outcomes) < 2:
            return None  # the table says it
        rows = [Row(outcome.name, [of(outcome)]) for outcome in outcomes]
        return dots(title, f"{what} by case; {note}.", rows, Scale(unit, starts_at_zero=True), ())
    values = sorted({x for cells in grid.panels.values() for _, x, _ in cells})
    found = []
    for name, cells in grid.panels.items():
        lines = []
        for number in dict.fromkeys(number for number, _, _ in cells):
            points = sorted(((x, of(outcome)) for each, x, outcome in cells if each == number), key=lambda one: one[0])
            lines.append(_line(number, [(x, figure) for x, figure in points if figure is not None]))
        found.append(Panel(name, f"{what} against {grid.x.name}, {name or 'all cases'}.", lines))
    x_scale = Scale(grid.x.name, is_log=_is_wide(values), ticks=values)
    caption = f"{what} against {grid.x.name}; {note}."
    return panels(title, caption, found, x_scale, Scale(unit, starts_at_zero=True), grid.legend)


def _memory_against(
    memories: Sequence[Held], tiers: Mapping[str, Callable[[MemoryRow], float | None]],
    name: str, count: Callable[[MemoryRow], int], counts: Sequence[int],
) -> Plots:  # fmt: skip
    lines = []
    for number, of in enumerate(tiers.values()):
        points = [
            (one, _scaled(across(of(row) for held in memories if count(held.first) == one for row in held.load), MIB))
            for one in counts
        ]
        lines.append(_line(number, [(float(one), figure) for one, figure in points if figure is not None]))
    caption = f"The most that was held under load against {name}, by tier; medians, with a line from lowest to highest."
    x = Scale(name, is_log=_is_wide(counts), ticks=counts)
    return panels("Memory", caption, [Panel("", caption, lines)], x, Scale("MiB", is_log=True), [*tiers])


def _of_which(section: Section) -> str:
    if not section.is_search:
        return ""
    return ", at the highest rate of each case within the limit, or the lowest where none is"


def _unless_empty(
    title: str, caption: str, found: Sequence[Panel], x: Scale, y: Scale, legend: Sequence[str]
) -> Plots | None:
    return panels(title, caption, found, x, y, legend) if found else None


def _over_time(name: str, runs: Sequence[Run]) -> Panel:
    lines: list[tuple[list[float], list[float]]] = [([], []) for _ in PERCENTILES]
    failures: list[float] = []
    for one in runs:
        seconds = one.timeline.end_s - one.timeline.start_s
        right = one.samples.answered().records
        due = right["due_s"] - one.timeline.start_s
        num_spans = min(MOST_SPANS, max(1, len(right) // FEWEST_REQUESTS))
        middles, figures = _by_span(due, right["latency_ms"], seconds / num_spans)
        for (x, y), figure in zip(lines, figures, strict=True):
            x += [*middles, float("nan")]  # no line from one repeat to the next
            y += [*figure, float("nan")]
        wrong = one.samples.records[one.samples.records["error"] > 0]["due_s"] - one.timeline.start_s
        failures += list(map(float, wrong))
    step = max(1, len(failures) // MOST_FAILURES)
    drawn = [Line(number, x, y) for number, (x, y) in enumerate(lines)]
    return Panel(name, f"Latency over time, {name}; {len(failures)} failed.", drawn, failures=sorted(failures)[::step])


def _by_span(due_s: np.ndarray, latency_ms: np.ndarray, width_s: float) -> tuple[list[float], list[list[float]]]:
    """The middle of each span of time, and the percentiles of the requests that were due in it. due_s: sorted."""
    spans, starts = np.unique((due_s / width_s).astype(int), return_index=True)
    parts = np.split(latency_ms.astype(float), starts[1:])
    figures = [[float(np.percentile(part, share)) for part in parts if len(part)] for share in PERCENTILES]
    return [float((span + 0.5) * width_s) for span in spans], figures


def _survival(section: Section, outcome: Outcome) -> tuple[list[float], list[float]]:
    """Latencies, and the share of requests that were slower than each."""
    runs = section.runs_of(outcome) if outcome.first.part == ALL else []
    values = [one.samples.answered().records["latency_ms"] for one in runs]
    if sum(map(len, values)):
        latencies = np.concatenate(values).astype(float)
        shares = np.geomspace(1 / len(latencies), 1 - 1 / (len(latencies) + 1), NUM_LEVELS)[::-1]
        return [float(one) for one in np.quantile(latencies, 1 - shares)], [float(one) for one in shares]
    known = [(across(_of(row, name) for row in outcome.rows), share) for name, share in _KNOWN.items()]
    return [one.median for one, _ in known if one], [share for one, share in known if one]


_KNOWN = {"p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01}
"""What a row tells of a distribution: percentile -> share of requests that are slower."""


def _of(row: LatencyRow, name: str) -> float | None:
    spread: Spread | None = row.latency_ms
    return None if spread is None else float(getattr(spread, name))


def _p95(outcome: Outcome) -> Across | None:
    return outcome.figure(lambda row: _of(row, "p95"))


def _line(number: int, points: Sequence[tuple[float, Across]]) -> Line:
    return Line(
        number,
        [x for x, _ in points],
        [figure.median for _, figure in points],
        [figure.low for _, figure in points],
        [figure.high for _, figure in points],
    )


def _scaled(figure: Across | None, by: float) -> Across | None:
    return None if figure is None else Across(figure.median / by, figure.low / by, figure.high / by)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) / min(values) > 8
