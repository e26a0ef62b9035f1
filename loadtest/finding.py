"""What a load test found, in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from decision.rows import LatencyRow
from loadtest import capacity
from loadtest.outcome import Across, Outcome, Section, across

LONG_S = 600
"""The shortest run of which the growth of memory says something."""
MOST_NAMED = 3
MIB = 2**20


def sentence(section: Section) -> str:
    """The main finding, what grew, and what failed."""
    parts = [_within_limit(section) if section.is_search else _compared(section), _growth(section), _failures(section)]
    text = "; ".join(part for part in parts if part)
    return text[:1].upper() + text[1:] + "."


def best_rates(section: Section) -> dict[str, Across | None]:
    """Case -> the highest rate within the limit, over the repeats in which one held."""
    found: dict[str, dict[int, float]] = {}
    for outcome in (one for one in section.outcomes if one.is_tried):
        best = found.setdefault(outcome.case, {})
        for row in outcome.rows:
            if row.rate_per_s is not None and capacity.holds(row):
                best[row.repeat] = max(best.get(row.repeat, 0.0), row.rate_per_s)
    return {case: across(best.values()) for case, best in found.items()}


def short(value: float) -> str:
    """With three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _within_limit(section: Section) -> str:
    best = best_rates(section)
    limit = next(outcome.first.limit_p95_ms for outcome in section.outcomes if outcome.first.limit_p95_ms is not None)
    within = f"with a 95th percentile of at most {limit:g} ms"
    held = sorted(((figure.median, case) for case, figure in best.items() if figure), reverse=True)
    missed = [case for case, figure in best.items() if figure is None]
    parts = []
    if len(held) == 1:
        parts.append(f"{within}, {held[0][1] if len(best) > 1 else 'the service'} takes {short(held[0][0])} requests/s")
    elif held:
        (most, fastest), (least, slowest) = held[0], held[-1]
        parts.append(
            f"{within}, {fastest} takes the most, {short(most)} requests/s, {slowest} the least, {short(least)}"
        )
    if missed:
        parts.append(f"{_some(missed)} met the limit of {limit:g} ms at no rate that was tried")
    return "; ".join(parts)


def _compared(section: Section) -> str:
    known = [outcome for outcome in section.whole if any(row.latency_ms for row in outcome.rows)]
    silent = [outcome.name for outcome in section.whole if outcome not in known]
    if not known:
        return "no request was answered" if section.outcomes else "only memory was measured"
    if silent:
        return f"nothing was answered in {_some(silent)}, {_rate(known[0])} in {known[0].name}"
    if len(known) == 1:
        return _rate(known[0])
    if any(outcome.first.rate_per_s is not None for outcome in known):  # then the rate says nothing of the service
        return _ranked(known, "p95 {} ms", _p95, ("lowest", "highest"))
    return _ranked(known, "{} requests/s", lambda row: -row.throughput_per_s, ("fastest", "slowest"))


def _ranked(
    outcomes: Sequence[Outcome], shown: str, cost: Callable[[LatencyRow], float | None], words: tuple[str, str]
) -> str:
    """Which case costs least and which most; none where their repeats overlap."""
    figures = [(figure, outcome) for outcome in outcomes if (figure := outcome.figure(cost)) is not None]
    best, best_of = min(figures, key=lambda one: one[0].median)
    worst, worst_of = max(figures, key=lambda one: one[0].median)

    def show(value: float) -> str:
        return shown.format(short(abs(value)))

    first, last = f"{best_of.name} ({show(best.median)})", f"{worst_of.name} ({show(worst.median)})"
    if len(best_of.rows) > 1 and best.high >= worst.low:
        return f"no case stands out: the repeats of {first} and {last} overlap"
    ratio = worst.median / best.median
    return f"{words[0]} is {first}, {words[1]} {last}, {short(max(ratio, 1 / ratio))} times apart"


def _p95(row: LatencyRow) -> float | None:
    return None if row.latency_ms is None else row.latency_ms.p95


def _rate(outcome: Outcome) -> str:
    rate, p95 = outcome.figure(lambda row: row.throughput_per_s), outcome.figure(_p95)
    assert rate is not None
    assert p95 is not None
    return f"{short(rate.median)} requests/s with p95 {short(p95.median)} ms"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (" and others" if len(names) > MOST_NAMED else "")


def _growth(section: Section) -> str:
    grown = [
        (row.growth_bytes_per_h, held.case)
        for held in section.memories
        for row in held.load
        if row.growth_bytes_per_h is not None
    ]
    longest = max((row.duration_s for outcome in section.outcomes for row in outcome.rows), default=0.0)
    if longest < LONG_S or not grown:
        return ""
    most, case = max(grown)
    where = f" in {case}" if len(section.memories) > 1 else ""
    verb = "grew" if most >= 0 else "shrank"
    return f"resident memory {verb} by {short(abs(most) / MIB)} MiB an hour{where}, over the second half of the run"


def _failures(section: Section) -> str:
    if not section.whole:
        return ""
    total = sum(row.num_requests for outcome in section.whole for row in outcome.rows)
    kinds: Counter[str] = Counter()
    for outcome in section.whole:
        kinds.update(outcome.errors())
    failed = sum(row.num_errors for outcome in section.whole for row in outcome.rows)
    if not failed:
        return f"none of {total:,} requests failed"
    named = _some([f"{count:,} × {kind}" for kind, count in kinds.most_common()])
    return f"{failed:,} of {total:,} requests failed ({named})"
