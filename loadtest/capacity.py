"""The highest rate that a service takes within a limit of latency."""

from __future__ import annotations

from collections.abc import Generator

from decision.rows import LatencyRow

FINE = 1.1
"""The search ends where the lowest rate that fails is that many times the highest that holds."""
MOST = 24
FEWEST_ANSWERED = 0.97
"""Of the rate that is asked for, for it to count as taken."""


def holds(row: LatencyRow) -> bool:
    """Whether the service took the row's rate within its limit, without an error."""
    assert row.limit_p95_ms is not None
    is_taken = row.throughput_per_s >= FEWEST_ANSWERED * row.num_requests / row.duration_s
    return row.num_errors == 0 and row.latency_ms is not None and row.latency_ms.p95 <= row.limit_p95_ms and is_taken


def search(first_per_s: float) -> Generator[float, bool, float | None]:
    """Yields rates to be tried, and is sent whether each held; returns the highest that did.

    Doubles, or halves, until the rate is between one that holds and one that does not; then halves the gap, on the
    scale of the logarithm. None if not even a thousandth of the first rate holds.
    """
    low: float | None = None
    high: float | None = None
    rate = first_per_s
    for _ in range(MOST):
        if (yield rate):
            low = rate
        else:
            high = rate
        if high is None:
            rate = rate * 2
        elif low is None:
            rate = rate / 2
            if rate < first_per_s / 1000:
                return None
        elif high <= low * FINE:
            return low
        else:
            rate = (low * high) ** 0.5
    return low
