"""How many replicas a rate needs within a limit of the 95th percentile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from benchmarks.scaling.policies import BOUNDED, HASH, RANDOM
from benchmarks.scaling.setting import P95_LIMIT_S, SLOW_LOAD_S, Setting

NUM_ADAPTERS, ROOM, NUM_REQUESTS, STEPS = 2000, 375, 15_000, 6
FLEETS = (2, 4, 8, 32)
POLICIES = (RANDOM, HASH, BOUNDED)
RATES = (100, 1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Size:
    """The highest rate within the limit that was found, of each of so many replicas."""

    policy: str
    num_replicas: int
    load_s: float
    is_bursty: bool
    rate_per_s: float
    hit_rate: float


@dataclass(frozen=True, slots=True)
class Need:
    """per_million: money for a million requests at that rate, by the table of prices."""

    rate_per_s: float
    policy: str
    load_s: float
    num_replicas: int
    per_hour: float
    per_million: float


def sizes(setting: Setting) -> list[Size]:
    cases = [(policy, load_s, False) for load_s in (setting.measured.load_s, SLOW_LOAD_S) for policy in POLICIES]
    cases += [(policy, setting.measured.load_s, True) for policy in POLICIES]
    return [
        _search(setting, policy, number, load_s, is_bursty) for policy, load_s, is_bursty in cases for number in FLEETS
    ]


def needs(setting: Setting, found: Sequence[Size]) -> list[Need]:
    """By the rate of the largest fleet that was searched and is no larger than what is needed."""
    rows = []
    steady = [one for one in found if not one.is_bursty and one.rate_per_s > 0]
    for policy, load_s in dict.fromkeys((one.policy, one.load_s) for one in steady):
        own = [one for one in steady if (one.policy, one.load_s) == (policy, load_s)]
        for rate in RATES:
            fitting = [one for one in own if one.num_replicas <= ceil(rate / one.rate_per_s)] or own[:1]
            best = max(fitting, key=lambda one: one.num_replicas)
            number = max(2, ceil(rate / best.rate_per_s))
            per_hour = number * setting.prices.cpu_per_hour
            rows.append(Need(rate, policy, load_s, number, per_hour, per_hour / (rate * 3600) * 1e6))
    return rows


def _search(setting: Setting, policy: str, num_replicas: int, load_s: float, is_bursty: bool) -> Size:
    shares, layout = setting.shares(NUM_ADAPTERS), setting.layout(policy, num_replicas, ROOM)
    layout = setting.slow(layout) if load_s == SLOW_LOAD_S else layout
    low, high, hit_rate = 0.0, 1.25, 0.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        outcome = setting.run(layout, shares, middle, NUM_REQUESTS, is_bursty=is_bursty)
        if outcome.p95_ms() <= P95_LIMIT_S * 1e3:
            low, hit_rate = middle, outcome.hit_rate()
        else:
            high = middle
    return Size(policy, num_replicas, load_s, is_bursty, low * setting.capacity_per_s, hit_rate)
