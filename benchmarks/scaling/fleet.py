"""Replicas behind routers, and what became of the requests that were sent to them."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import simpy
from numpy.typing import NDArray

from benchmarks.scaling.pace import Pace
from benchmarks.scaling.policies import BOUNDED, HASH, POLICIES, TWO, View
from benchmarks.scaling.replica import Replica, Request
from benchmarks.scaling.ring import Ring
from benchmarks.scaling.theory import Floats
from benchmarks.scaling.traffic import Ints, Traffic

LOOK_S = 0.05
"""Between two looks at whether a replica that drains is empty."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something done to a replica. A drained one starts again restart_s after it is empty; a killed one as late."""

    at_s: float
    replica: int
    action: Literal["kill", "drain"]
    restart_s: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A fleet. room: adapters that a replica holds. bound_percent: of the bounded hash."""

    pace: Pace
    policy: str
    num_replicas: int
    room: int
    load_s: float
    bound_percent: int = 125
    num_routers: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the requests after the warm-up. All [requests]."""

    came_s: Floats
    latency_s: Floats
    """From the router to the answer."""
    queue_s: Floats
    was_hit: NDArray[np.bool_]
    replica: Ints
    adapter: Ints
    num_resent: int
    num_loads: int
    busy: float
    """Part of the time that replicas computed, in their mean."""
    busiest: float
    """Requests of the replica that answered most, over the mean."""

    def p95_ms(self) -> float:
        return float(np.quantile(self.latency_s, 0.95)) * 1e3

    def hit_rate(self) -> float:
        return float(self.was_hit.mean())


def simulate(
    layout: Layout,
    traffic: Traffic,
    shares: Floats,
    happenings: Sequence[Happening] = (),
    warm_up: float = 0.1,
    num_users: int | None = None,
    held: Sequence[Sequence[int]] | None = None,
) -> Outcome:
    """Send all of the traffic, an open loop; or with num_users a closed one, whose users ask again when answered.

    held: what each replica has in memory before, the adapter used last at the end; if not given, what it would have
    after a long time with these shares [adapters]. warm_up: part of the requests that is left out of the outcome.
    """
    return _Run(layout, traffic, shares, num_users, held).outcome(happenings, warm_up)


@dataclass
class _Run:
    layout: Layout
    traffic: Traffic
    shares: Floats
    num_users: int | None
    held: Sequence[Sequence[int]] | None
    env: simpy.Environment = field(init=False)
    num_resent: int = 0

    def __post_init__(self) -> None:
        layout, size = self.layout, len(self.traffic)
        self.env = simpy.Environment()
        self.ring = Ring(layout.num_replicas, len(self.shares))
        rng = random.Random(layout.seed)
        self.views = [View(layout.num_replicas) for _ in range(layout.num_routers)]
        self.policies = [POLICIES[layout.policy](self.ring, layout.bound_percent, rng) for _ in self.views]
        self.routers: list[int] = np.random.default_rng(layout.seed).integers(layout.num_routers, size=size).tolist()
        self.replicas = [self._new_replica(number) for number in range(layout.num_replicas)]
        self.ended: list[Replica] = []
        held = warm_caches(layout, self.ring, self.shares) if self.held is None else self.held
        for replica, adapters in zip(self.replicas, held, strict=True):
            replica.fill(adapters)
        self.came, self.latency, self.queue = np.zeros(size), np.full(size, np.nan), np.zeros(size)
        self.hit, self.replica = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.int64)
        self.adapters: list[int] = self.traffic.adapters.tolist()
        self.tokens: list[int] = self.traffic.tokens.tolist()
        self.sent = 0

    def outcome(self, happenings: Sequence[Happening], warm_up: float) -> Outcome:
        if self.num_users is None:
            self.env.process(self._arrive())
        else:
            for _ in range(self.num_users):
                self._send_next()
        for happening in happenings:
            self.env.process(self._happen(happening))
        self.env.run()
        from_index = int(len(self.traffic) * warm_up)
        kept = slice(from_index, None)
        busy = [one.busy_s / self.env.now for one in self.replicas]
        return Outcome(
            came_s=self.came[kept],
            latency_s=self.latency[kept] + self.layout.pace.beside_s,
            queue_s=self.queue[kept],
            was_hit=self.hit[kept],
            replica=self.replica[kept],
            adapter=self.traffic.adapters[kept],
            num_resent=self.num_resent,
            num_loads=sum(one.num_loads for one in (*self.replicas, *self.ended)),
            busy=float(np.mean(busy)),
            busiest=float(np.bincount(self.replica[kept]).max() / len(self.came[kept]) * len(busy)),
        )

    def _new_replica(self, number: int) -> Replica:
        layout = self.layout
        return Replica(self.env, layout.pace, layout.room, layout.load_s, self._answered, number)

    def _arrive(self) -> Generator[simpy.Event, None, None]:
        timeout, now = self.env.timeout, 0.0
        for came_s in self.traffic.came_s.tolist():
            yield timeout(max(0.0, came_s - now))
            now = came_s
            self._send_next()

    def _send_next(self) -> None:
        index = self.sent
        if index == len(self.traffic):
            return
        self.sent += 1
        now = self.env.now
        self.came[index] = now
        self._route(Request(index, self.adapters[index], self.tokens[index], now, self.routers[index]))

    def _route(self, request: Request) -> None:
        view = self.views[request.router]
        replica = self.policies[request.router].choose(request.adapter, view)
        view.under_way[replica] += 1
        view.total += 1
        self.replicas[replica].take(request)

    def _answered(self, number: int, request: Request) -> None:
        view, index = self.views[request.router], request.index
        view.under_way[number] -= 1
        view.total -= 1
        self.latency[index] = self.env.now - request.came_s
        self.queue[index] = request.began_s - request.came_s
        self.hit[index] = request.was_hit
        self.replica[index] = number
        if self.num_users is not None:
            again = self.env.timeout(self.layout.pace.beside_s)
            assert again.callbacks is not None
            again.callbacks.append(lambda _: self._send_next())

    def _happen(self, happening: Happening) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(happening.at_s)
        number = happening.replica
        self._set_up([one for one in self.views[0].up if one != number])
        if happening.action == "kill":
            for request in self.replicas[number].kill():
                view = self.views[request.router]
                view.under_way[number] -= 1
                view.total -= 1
                self.num_resent += 1
                self._route(request)  # as the router does: a classification may be sent again
        else:
            while self.replicas[number].num_held:
                yield self.env.timeout(LOOK_S)
        yield self.env.timeout(happening.restart_s)
        self.ended.append(self.replicas[number])
        self.replicas[number] = self._new_replica(number)
        self._set_up(sorted([*self.views[0].up, number]))

    def _set_up(self, replicas: list[int]) -> None:
        for view in self.views:
            view.set_up(replicas)


def warm_caches(layout: Layout, ring: Ring, shares: Floats) -> list[list[int]]:
    """What each replica's cache holds after a long time, the adapter used last at the end.

    Under independent requests the time since an adapter was last asked for is exponential with its rate, and a cache
    that drops what was used longest ago holds those with the shortest times.
    """
    rng = np.random.default_rng(layout.seed + 1)
    held = []
    for replica in range(layout.num_replicas):
        rates = shares.copy()
        if layout.policy in (HASH, BOUNDED):
            rates[ring.homes != replica] = 0
        elif layout.policy == TWO:
            rates[np.fromiter((not _is_one_of_two(ring, one, replica) for one in range(len(shares))), np.bool_)] = 0
        asked = np.flatnonzero(rates)
        since = rng.exponential(1 / rates[asked])
        order = np.argsort(since)[: layout.room]
        held.append(asked[order[::-1]].tolist())
    return held


def _is_one_of_two(ring: Ring, adapter: int, replica: int) -> bool:
    walk = ring.walk(adapter)
    return replica in (next(walk), next(walk, -1))
