"""Which adapters a replica holds, by the router's policy and its memory."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.scaling.policies import BOUNDED, HASH, POLICIES, SPREADING, TWO
from benchmarks.scaling.ring import Ring
from benchmarks.scaling.setting import Setting
from benchmarks.scaling.theory import Floats, lru_hit_rate

NUM_REPLICAS, NUM_ADAPTERS, LOAD, NUM_REQUESTS = 8, 2000, 0.4, 20_000
ROOMS = (0.5, 1.0, 2.0, 4.0)
"""Of all replicas together, in adapters that there are."""
GIB = 2**30
MEMORY_GIB = (1, 4, 16)
"""For adapters, of one replica."""


@dataclass(frozen=True, slots=True)
class Held:
    """theory: the hit rate by Che's approximation; None where the policy has none. slow_p95_ms: with slow loads."""

    policy: str
    fleet_room: float
    room: int
    hit_rate: float
    theory: float | None
    p95_ms: float
    slow_p95_ms: float
    busiest: float


@dataclass(frozen=True, slots=True)
class Many:
    """Hit rates by theory. resident_part: of the adapters, in one replica at least."""

    num_adapters: int
    num_replicas: int
    memory_gib: float
    room: int
    resident_part: float
    hash_hit_rate: float
    random_hit_rate: float
    simulated_hit_rate: float | None


def held(setting: Setting) -> list[Held]:
    shares = setting.shares(NUM_ADAPTERS)
    found = []
    for fleet_room in ROOMS:
        room = round(fleet_room * NUM_ADAPTERS / NUM_REPLICAS)
        for policy in POLICIES:
            layout = setting.layout(policy, NUM_REPLICAS, room)
            outcome = setting.run(layout, shares, LOAD, NUM_REQUESTS)
            slow = setting.run(setting.slow(layout), shares, LOAD, NUM_REQUESTS)
            found.append(
                Held(
                    policy=policy,
                    fleet_room=fleet_room,
                    room=room,
                    hit_rate=outcome.hit_rate(),
                    theory=_theory(policy, shares, room),
                    p95_ms=outcome.p95_ms(),
                    slow_p95_ms=slow.p95_ms(),
                    busiest=outcome.busiest,
                )
            )
    return found


def _theory(policy: str, shares: Floats, room: int) -> float | None:
    if policy in SPREADING:
        return lru_hit_rate(shares, room)
    return None if policy in (BOUNDED, TWO) else hash_hit_rate(shares, NUM_REPLICAS, room)


def hash_hit_rate(shares: Floats, num_replicas: int, room: int) -> float:
    """Of all replicas together, each with a cache for the adapters whose home it is."""
    homes = Ring(num_replicas, len(shares)).homes
    parts = (shares[homes == replica] for replica in range(num_replicas))
    return sum(float(part.sum()) * lru_hit_rate(part, room) for part in parts)


def many(setting: Setting) -> list[Many]:
    """From a thousand to a million adapters, with memory for the measured size of an adapter."""
    found = []
    for num_adapters in (1_000, 10_000, 100_000, 1_000_000):
        shares = setting.shares(num_adapters)
        for num_replicas in (2, 8, 32):
            for memory_gib in MEMORY_GIB:
                room = int(memory_gib * GIB / setting.measured.adapter_bytes)
                is_largest = (num_adapters, num_replicas, memory_gib) == (1_000_000, 32, 1)
                found.append(
                    Many(
                        num_adapters=num_adapters,
                        num_replicas=num_replicas,
                        memory_gib=memory_gib,
                        room=room,
                        resident_part=min(1.0, room * num_replicas / num_adapters),
                        hash_hit_rate=hash_hit_rate(shares, num_replicas, room),
                        random_hit_rate=lru_hit_rate(shares, room),
                        simulated_hit_rate=_simulated(setting, shares, num_replicas, room) if is_largest else None,
                    )
                )
    return found


def _simulated(setting: Setting, shares: Floats, num_replicas: int, room: int) -> float:
    return setting.run(setting.layout(HASH, num_replicas, room), shares, 0.2, NUM_REQUESTS).hit_rate()


def num_moved(num_replicas: int, num_adapters: int) -> float:
    """Part of the adapters whose home changes when one more replica comes."""
    before, after = Ring(num_replicas, num_adapters).homes, Ring(num_replicas + 1, num_adapters).homes
    return float((before != after).mean())
