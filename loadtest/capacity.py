"""The highest rate that a service takes within a limit of latency."""

from __future__ import annotations

from collections.abc import Callable

FINE = 1.1
"""The search ends where the lowest rate that fails is that many times the highest that holds."""
MOST = 24


def search(first_per_s: float, holds: Callable[[float], bool]) -> float | None:
    """Double, or halve, until the rate is between one that holds and one that does not; then halve the gap.

    The gap is halved on the scale of the logarithm. None if not even a thousandth of the first rate holds.
    """
    low: float | None = None
    high: float | None = None
    rate = first_per_s
    for _ in range(MOST):
        if holds(rate):
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
