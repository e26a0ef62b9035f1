"""What the death of a replica costs, and a rollout: keys that move, misses, latency and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.scaling.fleet import Happening, Outcome
from benchmarks.scaling.policies import BOUNDED, RANDOM
from benchmarks.scaling.ring import Ring
from benchmarks.scaling.setting import Setting
from benchmarks.scaling.theory import Floats

NUM_REPLICAS, NUM_ADAPTERS, ROOM, LOAD = 4, 2000, 700, 0.4
CALM_S, RESTART_S, AFTER_S = 20.0, 15.0, 25.0
"""Assumed: RESTART_S from the end of a replica until it is ready again."""
WORSE = 1.5
"""A second is disturbed whose 95th percentile is more than so many times that of the calm before."""


@dataclass(frozen=True, slots=True)
class Loss:
    """misses_more: beside those of a calm time as long. moved: part of the adapters whose home was the replica."""

    what: str
    policy: str
    is_slow: bool
    moved: float
    num_resent: int
    num_lost: int
    calm_p95_ms: float
    worst_p95_ms: float
    disturbed_s: int
    calm_hit_rate: float
    lowest_hit_rate: float
    misses_more: int


def losses(setting: Setting) -> list[Loss]:
    death = [Happening(CALM_S, 1, "kill", RESTART_S)]
    rollout = [
        Happening(CALM_S + index * (RESTART_S + 5), NUM_REPLICAS - 1 - index, "drain", RESTART_S)
        for index in range(NUM_REPLICAS)
    ]
    return [
        _loss(setting, what, policy, happenings, is_slow)
        for what, happenings in (("death", death), ("rollout", rollout))
        for policy in (RANDOM, BOUNDED)
        for is_slow in (False, True)
    ]


def _loss(setting: Setting, what: str, policy: str, happenings: Sequence[Happening], is_slow: bool) -> Loss:
    layout = setting.layout(policy, NUM_REPLICAS, ROOM)
    seconds = happenings[-1].at_s + RESTART_S + AFTER_S
    num_requests = int(LOAD * NUM_REPLICAS * setting.capacity_per_s * seconds)
    layout = setting.slow(layout) if is_slow else layout
    outcome = setting.run(layout, setting.shares(NUM_ADAPTERS), LOAD, num_requests, happenings)
    p95, hit = by_second(outcome)
    calm = outcome.came_s < CALM_S
    calm_p95_s = float(np.quantile(outcome.latency_s[calm], 0.95))
    calm_hit = float(outcome.was_hit[calm].mean())
    after = ~calm
    homes = Ring(NUM_REPLICAS, NUM_ADAPTERS).homes
    gone = {happening.replica for happening in happenings}
    later = slice(int(CALM_S), None)
    return Loss(
        what=what,
        policy=policy,
        is_slow=is_slow,
        moved=float(np.isin(homes, list(gone)).mean()) if policy == BOUNDED else 0.0,
        num_resent=outcome.num_resent,
        num_lost=int(np.isnan(outcome.latency_s).sum()),
        calm_p95_ms=calm_p95_s * 1e3,
        worst_p95_ms=float(np.nanmax(p95[later])) * 1e3,
        disturbed_s=int((p95[later] > WORSE * calm_p95_s).sum()),
        calm_hit_rate=calm_hit,
        lowest_hit_rate=float(np.nanmin(hit[later])),
        misses_more=round(float((~outcome.was_hit[after]).sum() - (1 - calm_hit) * after.sum())),
    )


def by_second(outcome: Outcome) -> tuple[Floats, Floats]:
    """95th percentile of the latency and hit rate of each full second; NaN where nothing came."""
    seconds = outcome.came_s.astype(np.int64)
    p95, hit = np.full(int(seconds[-1]), np.nan), np.full(int(seconds[-1]), np.nan)
    ends = np.searchsorted(seconds, np.arange(len(p95) + 1))
    for second, (start, end) in enumerate(pairwise(ends)):
        if end > start:
            p95[second] = np.quantile(outcome.latency_s[start:end], 0.95)
            hit[second] = outcome.was_hit[start:end].mean()
    return p95, hit
