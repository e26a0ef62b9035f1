"""What mathematics says of queues and caches, to hold the simulation against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]


def zipf(num_adapters: int, exponent: float) -> Floats:
    """Part of the requests that goes to the adapter of each rank. [adapters]"""
    weights = np.arange(1, num_adapters + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def lru_hit_rate(shares: Floats, room: int) -> float:
    """Of a cache of `room` adapters under independent requests, shares [adapters] of any sum.

    Source: Che, Tung, Wang 2002, "Hierarchical web caching systems"; an adapter is there if it was asked for within the
    characteristic time, in which `room` different ones are asked for.
    """
    asked = shares[shares > 0]
    if room <= 0 or not len(asked):
        return 0.0
    if room >= len(asked):
        return 1.0
    rates = asked / asked.sum()

    def beyond_room(time: float) -> float:
        return float(-np.expm1(-rates * time).sum() - room)

    most = 1.0
    while beyond_room(most) < 0:
        most *= 4
    time = brentq(beyond_room, 0, most, rtol=1e-6)
    return float((rates * -np.expm1(-rates * time)).sum())


def md1_wait_s(rate_per_s: float, service_s: float) -> float:
    """Mean wait before a single server with constant service time (Pollaczek and Khinchine)."""
    load = rate_per_s * service_s
    return load * service_s / (2 * (1 - load))


def mm1_wait_s(rate_per_s: float, service_s: float) -> float:
    """Mean wait before a single server with exponential service times."""
    load = rate_per_s * service_s
    return load * service_s / (1 - load)


def fewest_homes(share: float, num_replicas: int, bound: float) -> int:
    """Replicas that an adapter with this part of the traffic needs, if none may have more than bound times the mean."""
    return min(num_replicas, max(1, int(np.ceil(share * num_replicas / bound - 1e-9))))
