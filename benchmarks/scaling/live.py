"""The live run of three replicas behind the router, held against the simulation and against theory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.scaling.affinity import hash_hit_rate
from benchmarks.scaling.fleet import Layout, simulate
from benchmarks.scaling.pace import Pace
from benchmarks.scaling.policies import BOUNDED, RANDOM
from benchmarks.scaling.ring import Ring
from benchmarks.scaling.theory import lru_hit_rate, zipf
from benchmarks.scaling.traffic import poisson, traffic

WARMUP_S, MEAN_TOKENS = 2.0, 20.0
ROUTINGS = {"affinity": BOUNDED, "random": RANDOM}
"""The live run's names, and ours."""


@dataclass(frozen=True, slots=True)
class Live:
    """Hit rates. theory: after a long time, without a bound."""

    routing: str
    measured: float
    simulated: float
    theory: float


def compared(record: Mapping[str, Any], pace: Pace, load_s: float) -> list[Live]:
    """record: benchmarks/results/replicas.json. As there, each adapter was asked once before, the rarest first."""
    found = []
    for routing, policy in ROUTINGS.items():
        if routing not in record.get("affinity", {}):
            continue
        num_replicas, num_adapters = record["num_replicas"], record["num_adapters"]
        room = round(num_adapters * record["room"])
        shares, rng = zipf(num_adapters, record["zipf_s"]), np.random.default_rng(0)
        came_s = poisson(record["rate_per_s"], round(record["rate_per_s"] * (WARMUP_S + record["spell_s"])), rng)
        homes = Ring(num_replicas, num_adapters).homes
        if policy == RANDOM:
            homes = rng.integers(num_replicas, size=num_adapters)
        held = [np.flatnonzero(homes == number)[:room][::-1].tolist() for number in range(num_replicas)]
        layout = Layout(pace, policy, num_replicas, room, load_s, record["balance_percent"])
        outcome = simulate(layout, traffic(came_s, shares, MEAN_TOKENS, rng), shares, warm_up=0, held=held)
        theory = lru_hit_rate(shares, room) if policy == RANDOM else hash_hit_rate(shares, num_replicas, room)
        found.append(Live(routing, record["affinity"][routing]["hit_rate"], outcome.hit_rate(), theory))
    return found
