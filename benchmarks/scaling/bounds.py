"""What the bound of the hash costs and saves, and how a hot adapter spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.scaling.fleet import Layout, Outcome
from benchmarks.scaling.policies import BOUNDED
from benchmarks.scaling.ring import Ring
from benchmarks.scaling.setting import Setting
from benchmarks.scaling.theory import Floats, fewest_homes

NUM_REPLICAS, NUM_ADAPTERS, NUM_REQUESTS = 8, 2000, 20_000
FLEET_ROOM = 1.5
"""Of all replicas together, in adapters that there are."""
BOUNDS = (110, 125, 150, 200, 300, 500, 1000)
LOADS = (0.1, 0.3, 0.5, 0.7)
ROUTERS = (1, 2, 8)
HOT_SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
USED = 0.05
"""A replica counts as one of a hot adapter's if it answers this part of its requests."""


@dataclass(frozen=True, slots=True)
class Bound:
    """away: part of the requests that were not answered by their adapter's home."""

    bound_percent: int
    num_routers: int
    load: float
    hit_rate: float
    away: float
    p95_ms: float
    slow_p95_ms: float
    busiest: float


@dataclass(frozen=True, slots=True)
class Hot:
    """An adapter with a large part of the traffic. fewest: replicas that it needs by its share and the bound."""

    share: float
    bound_percent: int
    fewest: int
    used: int
    p95_ms: float
    others_p95_ms: float
    others_hit_rate: float
    busiest: float


def bounds(setting: Setting) -> list[Bound]:
    shares = setting.shares(NUM_ADAPTERS)
    cases = [(bound, setting.chart.router.replicas, load) for load in LOADS for bound in BOUNDS]
    cases += [(bound, routers, LOADS[1]) for routers in ROUTERS for bound in BOUNDS if routers != cases[0][1]]
    found = []
    for bound, num_routers, load in cases:
        layout = replace(_layout(setting), bound_percent=bound, num_routers=num_routers)
        outcome = setting.run(layout, shares, load, NUM_REQUESTS)
        slow = setting.run(setting.slow(layout), shares, load, NUM_REQUESTS)
        found.append(
            Bound(
                bound_percent=bound,
                num_routers=num_routers,
                load=load,
                hit_rate=outcome.hit_rate(),
                away=_away(outcome),
                p95_ms=outcome.p95_ms(),
                slow_p95_ms=slow.p95_ms(),
                busiest=outcome.busiest,
            )
        )
    return found


def hot(setting: Setting, tried: Sequence[int] = (125, 200, 300)) -> list[Hot]:
    """One adapter is asked far more than the others, at half the fleet's capacity."""
    found = []
    for share in HOT_SHARES:
        shares = _with_hot(setting.shares(NUM_ADAPTERS), share)
        for bound in tried:
            outcome = setting.run(replace(_layout(setting), bound_percent=bound), shares, 0.5, NUM_REQUESTS)
            is_hot = outcome.adapter == 0
            used = np.bincount(outcome.replica[is_hot], minlength=NUM_REPLICAS) / max(1, is_hot.sum())
            found.append(
                Hot(
                    share=share,
                    bound_percent=bound,
                    fewest=fewest_homes(share, NUM_REPLICAS, bound / 100),
                    used=int((used >= USED).sum()),
                    p95_ms=float(np.quantile(outcome.latency_s[is_hot], 0.95)) * 1e3,
                    others_p95_ms=float(np.quantile(outcome.latency_s[~is_hot], 0.95)) * 1e3,
                    others_hit_rate=float(outcome.was_hit[~is_hot].mean()),
                    busiest=outcome.busiest,
                )
            )
    return found


def _layout(setting: Setting) -> Layout:
    return setting.layout(BOUNDED, NUM_REPLICAS, round(FLEET_ROOM * NUM_ADAPTERS / NUM_REPLICAS))


def _away(outcome: Outcome) -> float:
    return float((Ring(NUM_REPLICAS, NUM_ADAPTERS).homes[outcome.adapter] != outcome.replica).mean())


def _with_hot(shares: Floats, share: float) -> Floats:
    others = shares.copy()
    others[0] = 0
    others *= (1 - share) / others.sum()
    others[0] = share
    return others
