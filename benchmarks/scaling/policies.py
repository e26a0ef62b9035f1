"""Ways in which a router chooses a replica for a request."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from benchmarks.scaling.ring import Ring


@dataclass(slots=True)
class View:
    """What one router knows: which replicas are up, and its own requests that each has under way."""

    num_replicas: int
    under_way: list[int] = field(init=False)
    total: int = 0
    up: list[int] = field(init=False)
    place: list[int] = field(init=False)
    """Of each replica among those that are up; -1 where it is not."""

    def __post_init__(self) -> None:
        self.under_way = [0] * self.num_replicas
        self.set_up(range(self.num_replicas))

    def set_up(self, replicas: range | list[int]) -> None:
        self.up = list(replicas)
        self.place = [-1] * self.num_replicas
        for place, replica in enumerate(self.up):
            self.place[replica] = place


class Policy(Protocol):
    def choose(self, adapter: int, view: View) -> int:
        """A replica that is up."""


@dataclass(slots=True)
class Random:
    """Any, all alike."""

    rng: random.Random

    def choose(self, adapter: int, view: View) -> int:
        return view.up[int(self.rng.random() * len(view.up))]


@dataclass(slots=True)
class RoundRobin:
    """One after the other."""

    turn: count[int]

    def choose(self, adapter: int, view: View) -> int:
        return view.up[next(self.turn) % len(view.up)]


@dataclass(slots=True)
class LeastConnections:
    """One of those with the fewest requests under way."""

    rng: random.Random

    def choose(self, adapter: int, view: View) -> int:
        fewest = min(view.under_way[one] for one in view.up)
        found = [one for one in view.up if view.under_way[one] == fewest]
        return found[int(self.rng.random() * len(found))]


@dataclass(slots=True)
class BoundedHash:
    """The adapter's home, or where that has its fill the next one on the ring that has not.

    Source: Mirrokni, Thorup, Zadimoghaddam 2018, "Consistent hashing with bounded loads", as HAProxy counts: no replica
    has more of the router's requests than its part of all, one more included, times the bound; rounded up in sum, and
    no less than one. bound_percent: None leaves replicas without a bound.
    """

    ring: Ring
    bound_percent: int | None

    def choose(self, adapter: int, view: View) -> int:
        num_up, slots = len(view.up), 0
        if self.bound_percent is not None:
            slots = ((view.total + 1) * self.bound_percent + 99) // 100
        first = -1
        for replica in self.ring.walk(adapter):
            place = view.place[replica]
            if place < 0:
                continue
            own = (place + 1) * slots // num_up - place * slots // num_up
            if not slots or view.under_way[replica] < max(1, own):
                return replica
            first = replica if first < 0 else first
        return first


@dataclass(slots=True)
class TwoHomes:
    """Of the first two on the ring the one with fewer requests under way (Mitzenmacher 2001, with fixed choices)."""

    ring: Ring

    def choose(self, adapter: int, view: View) -> int:
        first = -1
        for replica in self.ring.walk(adapter):
            if view.place[replica] < 0:
                continue
            if first < 0:
                first = replica
                continue
            return first if view.under_way[first] <= view.under_way[replica] else replica
        return first


RANDOM, ROUND_ROBIN, LEAST, HASH, BOUNDED, TWO = (
    "random", "round robin", "least connections", "hash", "bounded hash", "two homes",
)  # fmt: skip
POLICIES: Mapping[str, Callable[[Ring, int, random.Random], Policy]] = {
    RANDOM: lambda ring, bound, rng: Random(rng),
    ROUND_ROBIN: lambda ring, bound, rng: RoundRobin(count(int(rng.random() * 1000))),
    LEAST: lambda ring, bound, rng: LeastConnections(rng),
    HASH: lambda ring, bound, rng: BoundedHash(ring, None),
    BOUNDED: lambda ring, bound, rng: BoundedHash(ring, bound),
    TWO: lambda ring, bound, rng: TwoHomes(ring),
}
"""By name: how one router's policy is made of the ring, the bound in percent, and chance."""
SPREADING = (RANDOM, ROUND_ROBIN, LEAST)
"""Those that know nothing of adapters."""
