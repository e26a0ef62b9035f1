"""What the worked example shows of serving, from the rows of load tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from decision.rows import LatencyRow, Served
from decision.serving import SERVICE
from docs import evidence
from docs.tables import KIB, MIB, NOTHING, bullets, listed, table

METHODS, CAPACITY, CACHE, SOAK = "methods", "capacity", "cache", "soak"
"""Scenarios."""


def latencies(scenario: str) -> list[LatencyRow]:
    """Of the service on a CPU, on the machine that has most of them."""
    found = evidence.tree().evidence.latencies
    return [row for row in found if row.scenario == scenario and row.part == "all" and _counts(row)]


def _counts(row: Served) -> bool:
    serving = evidence.tree().serving("cpu", row.base)
    return row.target == SERVICE and row.device == "cpu" and row.provenance.machine == serving.machine


def serving_table() -> str:
    """Each method alone and all mixed, fully loaded."""
    found = latencies(METHODS)
    dtypes = sorted({row.dtype for row in found})
    hot = sorted({row.num_hot for row in found})
    kinds = list(dict.fromkeys(_kind(row) for row in sorted(found, key=lambda row: len(row.methods))))
    lines = []
    for kind in kinds:
        own = [row for row in found if _kind(row) == kind]
        each = [row.hot_bytes / row.num_hot for row in own if row.hot_bytes]
        line = [kind, f"{median(each) / KIB:,.0f}" if each else NOTHING]
        for dtype in dtypes:
            of_dtype = [row for row in own if row.dtype == dtype]
            line += [_median((row.texts_per_s for row in of_dtype if row.num_hot == count), "{:,.0f}") for count in hot]
            last = [row for row in of_dtype if row.num_hot == hot[-1] and row.latency_ms is not None]
            line.append(_median((row.latency_ms.p95 for row in last if row.latency_ms is not None), "{:,.0f}"))
        lines.append(line)
    first = found[0]
    tokens = median(row.tokens_per_s / row.texts_per_s for row in found if row.tokens_per_s)
    repeats = len({row.repeat for row in found})
    caption = (
        f"Texts a second of one replica with {listed(f'{count:,}' for count in hot)} hot adapters, and the 95th "
        f"percentile of latency (ms) with {hot[-1]:,}, while {first.num_users} clients ask without pause: "
        f"{first.base.rpartition('/')[2]}, {first.provenance.machine}, {first.num_registered} registered adapters "
        f"with random weights, texts of {tokens:.0f} tokens in the mean, the load generator on the same machine; "
        f"{_each(f'`{row.provenance.command}`' for row in found)}; {repeats} {'run' if repeats == 1 else 'runs'} a "
        f"case, "
        f"commits {_each(f'`{row.provenance.commit}`' for row in found)}."
    )
    head = ["hot adapters", "KiB each"]
    for dtype in dtypes:
        head += [f"{dtype}, {count}" for count in hot] + ["p95"]
    return table(head, lines, "lr" + "r" * (len(head) - 2), caption, "serving")


def serving_part() -> str:
    """What the other scenarios show."""
    return bullets([*_on_capacity(), *_on_cache(), *_on_soak()])


def _on_cache() -> list[str]:
    """With the least and the most room for adapters; medians and ends over the turns."""
    found = latencies(CACHE)
    shares = sorted({share for row in found if (share := _room(row)) is not None})
    if len(shares) < 2:
        return []
    rates, p95s, loads = [], [], []
    for share in (shares[0], shares[-1]):
        own = [row for row in found if _room(row) == share]
        rates.append(_middle([row.texts_per_s for row in own]))
        p95s.append(_middle([row.latency_ms.p95 for row in own if row.latency_ms is not None]))
        loads.append(median(row.adapter_loads or 0 for row in own))
    return [
        f"**Little memory.** With room for {shares[0]:g} times the bytes of {found[0].num_hot} hot adapters instead "
        f"of {shares[-1]:g} times: {rates[0]} instead of {rates[1]} texts a second, p95 {p95s[0]} instead of "
        f"{p95s[1]} ms, {loads[0]:,.0f} instead of {loads[1]:,.0f} adapters loaded in {found[0].duration_s:.0f} s "
        "(medians of turns, with the lowest and the highest)."
    ]


def _on_capacity() -> list[str]:
    """The highest rate that was seen within the limit that the search was given."""
    found: dict[tuple[float, str, int], list[LatencyRow]] = {}
    for row in latencies(CAPACITY):
        if row.limit_p95_ms is not None:
            found.setdefault((row.limit_p95_ms, *row.adapters), []).append(row)
    told: dict[float, list[str]] = {}
    for (limit, methods, num_bytes), own in sorted(found.items()):
        held = [row for row in own if row.latency_ms is not None and row.latency_ms.p95 <= limit and not row.num_errors]
        most = f"{max(row.texts_per_s for row in held):,.0f}" if held else "none"
        name = methods if "+" not in methods else "all four mixed"
        told.setdefault(limit, []).append(f"{name} ({num_bytes / own[0].num_hot / KIB:,.0f} KiB each) {most}")
    return [
        f"**Within a limit.** The highest rate (texts a second, arriving at random) at which the 95th percentile was "
        f"seen to stay within {limit:g} ms, with {latencies(CAPACITY)[0].num_hot} hot adapters: {'; '.join(rates)}."
        for limit, rates in told.items()
    ]


def _on_soak() -> list[str]:
    sentences = []
    for row in latencies(SOAK):
        if row.latency_ms is not None:
            room = _room(row)
            within = "" if room is None else f" with room for {room:g} times their bytes"
            sentences.append(
                f"**Long.** {row.duration_s / 60:.0f} minutes at {row.rate_per_s:g} requests a second over "
                f"{row.num_hot} adapters{within}: {row.num_requests:,} requests, {row.num_errors} failed, p95 "
                f"{row.latency_ms.p95:.0f} ms, {row.adapter_loads or 0:,} adapters loaded."
            )
    for memory in evidence.tree().evidence.memories:
        if memory.scenario == SOAK and _counts(memory) and memory.growth_bytes_per_h is not None:
            sentences.append(
                f"**Growth.** Over the second half of that run resident memory changed by "
                f"{memory.growth_bytes_per_h / MIB:+,.0f} MiB an hour, by a straight line through its samples."
            )
    return sentences


def _room(row: Served) -> float | None:
    """For adapters, as a share of the hot ones' bytes."""
    given = row.service.get("adapter_bytes")
    return round(given / row.hot_bytes, 1) if isinstance(given, int) and row.hot_bytes else None


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _kind(row: Served) -> str:
    return " + ".join(sorted(row.methods)) if len(row.methods) == 1 else "all four mixed"


def _median(values: Iterable[float], form: str) -> str:
    found = list(values)
    return form.format(median(found)) if found else NOTHING


def _each(values: Iterable[str]) -> str:
    return listed(sorted(set(values)))
