"""Kubernetes' rule for the number of replicas, over a fleet that is followed second by second."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scaling.theory import Floats

SYNC_S = 15
"""Between two looks of the horizontal pod autoscaler (--horizontal-pod-autoscaler-sync-period)."""
TOLERANCE = 0.1
"""Nothing happens where a metric is off its target by less (--horizontal-pod-autoscaler-tolerance)."""
SLICE_S = 1


@dataclass(frozen=True, slots=True)
class Curve:
    """What the fleet does at a steady rate, as simulated request by request. All [points], by rising rate."""

    rate_per_s: Floats
    """Of one replica, in the mean."""
    queue_s: Floats
    p95_s: Floats
    busy: Floats
    capacity_per_s: float
    """Of one replica that never rests."""

    def at(self, rate_per_s: float) -> tuple[float, float, float]:
        """Mean wait, 95th percentile of the latency and busy part, all at the highest point beyond that."""
        return (
            float(np.interp(rate_per_s, self.rate_per_s, self.queue_s)),
            float(np.interp(rate_per_s, self.rate_per_s, self.p95_s)),
            float(np.interp(rate_per_s, self.rate_per_s, self.busy)),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """The chart's `autoscaling`. A target of 0 is not looked at; of several the one that wants most replicas counts."""

    name: str
    min_replicas: int
    max_replicas: int
    queue_s: float = 0.0
    cpu: float = 0.0
    """Part of the requested cores."""
    cpu_at_full: float = 1.0
    """Part of the requested cores that a replica uses that never rests."""
    rate_per_s: float = 0.0
    """Texts a second of a replica."""
    window_s: int = 120
    """Over which the metrics are means (the chart's rate(...[2m])); of the processor it is shorter."""
    cpu_window_s: int = 30
    scale_down_s: int = 600
    up_factor: float = 2.0
    """At most so many times the replicas of a minute ago."""
    down_step: int = 1
    """Replicas that may go within a minute."""
    start_s: int = 60
    """Until a new replica is ready."""
    max_wait_s: float = 30.0
    """Who would wait longer is refused (--max-wait-s)."""


@dataclass(frozen=True, slots=True)
class Course:
    """What happened, second by second. All [seconds]."""

    rate_per_s: Floats
    replicas: Floats
    """Paid for: ready ones and those that start."""
    ready: Floats
    p95_s: Floats
    refused_per_s: Floats

    def violated_part(self, limit_s: float) -> float:
        """Of the requests: those of seconds whose 95th percentile is beyond the limit, and those refused."""
        late = np.where(self.p95_s > limit_s, self.rate_per_s, self.refused_per_s)
        return float(late.sum() / self.rate_per_s.sum())

    def replica_hours(self) -> float:
        return float(self.replicas.sum() * SLICE_S / 3600)

    def num_changes(self) -> int:
        return int(np.count_nonzero(np.diff(self.replicas)))


@dataclass
class _State:
    ready: int
    starting: deque[int] = field(default_factory=deque)
    """When each one will be ready."""
    backlog: float = 0.0

    @property
    def wanted(self) -> int:
        return self.ready + len(self.starting)


def follow(rule: Rule, curve: Curve, rates: Sequence[float], seed: int = 0, start: int | None = None) -> Course:
    """Let the rule act on a fleet that is asked at these rates, second by second, with Poisson noise.

    A backlog that is left waits in front of all that comes; within a second the wait is that of the curve.
    """
    rng = np.random.default_rng(seed)
    state = _State(rule.min_replicas if start is None else start)
    seen = _Seen(rule)
    wanted: deque[tuple[int, int]] = deque()  # (second, replicas wanted), for the window of scaling down
    held: deque[int] = deque(maxlen=60)
    rows = np.zeros((5, len(rates)))
    for second, rate in enumerate(rates):
        while state.starting and state.starting[0] <= second:
            state.starting.popleft()
            state.ready += 1
        came = float(rng.poisson(rate))
        queue_s, p95_s, busy, refused = _serve(rule, curve, state, came)
        seen.add(queue_s, came, busy, state.ready)
        held.append(state.wanted)
        rows[:, second] = came, state.wanted, state.ready, p95_s, refused
        if second % SYNC_S == 0 and second >= rule.window_s:
            _scale(rule, state, seen.wanted(state), second, wanted, held)
    return Course(*rows)


def _serve(rule: Rule, curve: Curve, state: _State, came: float) -> tuple[float, float, float, float]:
    """Wait, 95th percentile, busy part and refusals of one second."""
    capacity = state.ready * curve.capacity_per_s
    each = min((came + state.backlog) / state.ready, curve.capacity_per_s)
    queue_s, p95_s, busy = curve.at(each)
    behind_s = state.backlog / capacity
    state.backlog = max(0.0, state.backlog + came - capacity)
    refused = max(0.0, state.backlog - rule.max_wait_s * capacity)
    state.backlog -= refused
    return queue_s + behind_s, p95_s + behind_s, busy, refused


class _Seen:
    """The metrics, as Prometheus and the kubelet would have them."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._queue: deque[tuple[float, float]] = deque(maxlen=rule.window_s)
        self._busy: deque[float] = deque(maxlen=rule.cpu_window_s)
        self._rates: deque[float] = deque(maxlen=rule.window_s)

    def add(self, queue_s: float, came: float, busy: float, ready: int) -> None:
        self._queue.append((queue_s * came, came))
        self._busy.append(busy)
        self._rates.append(came)

    def wanted(self, state: _State) -> int:
        """ceil(replicas times metric over target), of the metric that wants most."""
        rule = self._rule
        asked = sum(came for _, came in self._queue)
        queue_s = sum(waited for waited, _ in self._queue) / asked if asked else 0.0
        parts = []
        if rule.queue_s:
            parts.append(queue_s / rule.queue_s)
        if rule.cpu:
            parts.append(sum(self._busy) / len(self._busy) * rule.cpu_at_full / rule.cpu)
        if rule.rate_per_s:
            parts.append(sum(self._rates) / len(self._rates) / state.ready / rule.rate_per_s)
        found = [state.wanted if abs(part - 1) <= TOLERANCE else math.ceil(state.ready * part - 1e-9) for part in parts]
        most = max(found, default=state.wanted)
        # while some start, more than there are ready is no reason to have fewer than were asked for
        return max(most, state.wanted) if most > state.ready else most


def _scale(
    rule: Rule, state: _State, desired: int, second: int, wanted: deque[tuple[int, int]], held: deque[int]
) -> None:
    desired = min(rule.max_replicas, max(rule.min_replicas, desired))
    wanted.append((second, desired))
    while wanted[0][0] < second - rule.scale_down_s:
        wanted.popleft()
    if desired > state.wanted:
        for _ in range(min(desired, math.ceil(held[0] * rule.up_factor)) - state.wanted):
            state.starting.append(second + rule.start_s)
    else:
        highest = max(number for _, number in wanted)
        for _ in range(min(state.wanted - max(highest, held[0] - rule.down_step), state.wanted - rule.min_replicas)):
            if state.starting:
                state.starting.pop()
            else:
                state.ready -= 1


def step(seconds: int, at_s: int, before: float, after: float) -> list[float]:
    return [before if second < at_s else after for second in range(seconds)]


def ramp(seconds: int, from_s: int, to_s: int, before: float, after: float) -> list[float]:
    return [float(np.interp(second, [from_s, to_s], [before, after])) for second in range(seconds)]


def day(mean: float, swing: float, noise: float, seed: int) -> list[float]:
    """24 hours around a mean, highest in the afternoon, with noise from minute to minute."""
    rng = np.random.default_rng(seed)
    minutes = np.exp(rng.normal(0, noise, 24 * 60 + 1))
    seconds = np.arange(24 * 3600)
    wave = 1 + swing * np.sin(2 * np.pi * (seconds / 86400 - 0.375))
    rates: list[float] = (mean * wave * np.interp(seconds / 60, np.arange(len(minutes)), minutes)).tolist()
    return rates
