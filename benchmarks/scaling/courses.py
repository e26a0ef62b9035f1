"""How rules of autoscaling do on a step, a ramp, bursts and a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.scaling.autoscaler import Course, Curve, Rule, day, follow, ramp, step
from benchmarks.scaling.fleet import simulate
from benchmarks.scaling.policies import BOUNDED
from benchmarks.scaling.setting import ALERT_S, P95_LIMIT_S, Setting
from benchmarks.scaling.traffic import traffic

NUM_REPLICAS, NUM_ADAPTERS, ROOM, NUM_REQUESTS = 4, 2000, 700, 15_000
PARTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the capacity, at which the curve is simulated."""
OVERLOAD = 2.0
"""At which all that the replicas can do is seen: full batches, whose texts share adapters."""
MIN_REPLICAS, MAX_REPLICAS, START_S = 2, 40, 60
"""Assumed: START_S from the order of a replica until it is ready."""
SETTLE_S = 60
"""A course is back within the limit once it has been for so long."""
TRACE_S = 10


@dataclass(frozen=True, slots=True)
class Ruled:
    """What a rule did on a course. late: parts of the requests beyond the limit, of 100 ms and of the alert's.

    first_s: from the change of the traffic to the first replica more that is ready; settled_s: until the 95th
    percentile stays within the limit. most_over_need: the most replicas over what the traffic needs at its highest.
    None: never.
    """

    course: str
    rule: str
    first_s: int | None
    settled_s: int | None
    most: int
    most_over_need: float
    late: float
    very_late: float
    replica_hours: float
    cost_per_day: float
    num_changes: int


@dataclass(frozen=True, slots=True)
class Check:
    """One overload of a fixed fleet, followed second by second and simulated request by request."""

    followed_worst_ms: float
    simulated_worst_ms: float
    followed_drained_s: int
    simulated_drained_s: int


def curve(setting: Setting) -> Curve:
    shares, layout = setting.shares(NUM_ADAPTERS), setting.layout(BOUNDED, NUM_REPLICAS, ROOM)
    rows = []
    for part in PARTS:
        outcome = setting.run(layout, shares, part, NUM_REQUESTS)
        rows.append((part, float(outcome.queue_s.mean()), outcome.p95_ms() / 1e3, outcome.busy))
    parts, queue_s, p95_s, busy = (np.array(column) for column in zip(*rows, strict=True))
    over = setting.run(layout, shares, OVERLOAD, NUM_REQUESTS)
    spent_s = float((over.came_s + over.latency_s).max() - over.came_s[0])
    capacity_per_s = len(over.came_s) / spent_s / NUM_REPLICAS
    return Curve(parts * setting.capacity_per_s, queue_s, p95_s, busy, capacity_per_s)


def rules(setting: Setting, found: Curve) -> list[Rule]:
    """The chart's, and what else might be set. The rate: of a replica at the limit of the p95, with headroom."""
    scaling = setting.chart.autoscaling
    chart = Rule(
        name="",
        min_replicas=MIN_REPLICAS,
        max_replicas=MAX_REPLICAS,
        scale_down_s=scaling.scale_down_s,
        start_s=START_S,
    )
    queue_s, cpu = scaling.queue_ms / 1e3, scaling.cpu_percent / 100
    rate = rate_within(found, P95_LIMIT_S) * setting.prices.headroom
    own_cpu = replace(chart, cpu=cpu, cpu_at_full=setting.measured.cpu_at_full)
    return [
        replace(chart, name=f"queue {queue_s * 1e3:.0f} ms, processor {cpu:.0%} (the chart)", queue_s=queue_s, cpu=cpu),
        replace(own_cpu, name=f"processor {cpu:.0%}, one thread on two cores"),
        replace(chart, name="queue 100 ms", queue_s=0.1),
        replace(chart, name="queue 20 ms", queue_s=0.02),
        replace(chart, name="rate", rate_per_s=rate),
        replace(chart, name="rate, down after 5 min", rate_per_s=rate, scale_down_s=300),
        replace(chart, name="rate, window 1 min", rate_per_s=rate, window_s=60),
        replace(chart, name="rate, queue 500 ms", rate_per_s=rate, queue_s=0.5),
    ]


def traces(setting: Setting, found: Curve) -> dict[str, dict[str, list[float]]]:
    """The first course by rule, every TRACE_S seconds, for a figure."""
    rates, _ = next(iter(courses(rate_within(found, P95_LIMIT_S)).values()))
    shown = {}
    for rule in rules(setting, found):
        course = follow(rule, found, rates, setting.seed)
        shown[rule.name] = {
            "ready": course.ready[::TRACE_S].tolist(),
            "p95_ms": (course.p95_s[::TRACE_S] * 1e3).tolist(),
        }
    return {"": {"every_s": [TRACE_S], "rate_per_s": rates[::TRACE_S]}, **shown}


def rate_within(found: Curve, limit_s: float) -> float:
    """The highest rate of a replica on the curve whose 95th percentile is within the limit."""
    fine = np.linspace(found.rate_per_s[0], found.rate_per_s[-1], 1000)
    held = [rate for rate in fine.tolist() if found.at(rate)[1] <= limit_s]
    return max(held, default=float(found.rate_per_s[0]))


def courses(each: float) -> Mapping[str, tuple[list[float], int]]:
    """Rates second by second, and when they change. each: what a replica takes within the limit, a second."""
    low = 2 * each * 0.6
    bursts = [low * (3 if 900 <= second % 1800 < 960 else 1) for second in range(7200)]
    return {
        "step, three times as much": (step(3600, 600, low, 3 * low), 600),
        "ramp, five times as much in ten minutes": (ramp(3600, 600, 1200, low, 5 * low), 600),
        "bursts, three times as much for a minute": (bursts, 900),
        "steady": ([2.5 * low] * 7200, 0),
        "day": (day(4 * low, 0.7, 0.1, seed=1), 0),
    }


def ruled(setting: Setting, found: Curve) -> list[Ruled]:
    each = rate_within(found, P95_LIMIT_S)
    rows = []
    for name, (rates, changed_s) in courses(each).items():
        for rule in rules(setting, found):
            start = 5 if name == "steady" else 6 if name == "day" else None
            course = follow(rule, found, rates, setting.seed, start)
            rows.append(_row(setting, name, rule.name, course, changed_s, max(rates) / each))
        number = int(np.ceil(max(rates) / each / setting.prices.headroom))
        fixed = follow(Rule("fixed", number, number), found, rates, setting.seed)
        rows.append(_row(setting, name, "as many as the highest needs", fixed, changed_s, max(rates) / each))
    return rows


def _row(setting: Setting, name: str, rule: str, course: Course, changed_s: int, needed: float) -> Ruled:
    before = course.ready[changed_s]
    more = np.flatnonzero(course.ready[changed_s:] > before)
    hours = course.replica_hours()
    return Ruled(
        course=name,
        rule=rule,
        first_s=int(more[0]) if len(more) else None,
        settled_s=_settled_s(course, changed_s),
        most=int(course.replicas.max()),
        most_over_need=float(course.replicas.max() / np.ceil(needed)),
        late=course.violated_part(P95_LIMIT_S),
        very_late=course.violated_part(ALERT_S),
        replica_hours=hours,
        cost_per_day=hours / len(course.ready) * 86400 * setting.prices.cpu_per_hour,
        num_changes=course.num_changes(),
    )


def _settled_s(course: Course, changed_s: int) -> int | None:
    late = course.p95_s[changed_s:] > P95_LIMIT_S
    if not late.any():
        return 0
    for second in np.flatnonzero(late)[:1].tolist() + (np.flatnonzero(late[:-1] & ~late[1:]) + 1).tolist():
        if not late[second : second + SETTLE_S].any():
            return int(second)
    return None


def check(setting: Setting, found: Curve) -> Check:
    """Two replicas, 20 seconds of 1.3 times what they take, then little."""
    rates = [part * 2 * found.capacity_per_s for part in [0.3] * 10 + [1.3] * 20 + [0.3] * 60]
    course = follow(Rule("fixed", 2, 2), found, rates, setting.seed)
    rng = np.random.default_rng(setting.seed)
    came_s = np.sort(np.concatenate([second + rng.random(rng.poisson(rate)) for second, rate in enumerate(rates)]))
    shares = setting.shares(NUM_ADAPTERS)
    asked = traffic(came_s, shares, setting.measured.mean_tokens, rng)
    outcome = simulate(setting.layout(BOUNDED, 2, ROOM), asked, shares, warm_up=0)
    seconds = outcome.came_s.astype(np.int64)
    p95 = np.array([np.quantile(outcome.latency_s[seconds == second], 0.95) for second in range(len(rates))])
    return Check(
        followed_worst_ms=float(course.p95_s.max()) * 1e3,
        simulated_worst_ms=float(p95.max()) * 1e3,
        followed_drained_s=_drained_s(course.p95_s.tolist()),
        simulated_drained_s=_drained_s(p95.tolist()),
    )


def _drained_s(p95_s: Sequence[float]) -> int:
    """Seconds from the end of the overload until the 95th percentile is below a quarter of a second."""
    return next((index for index, value in enumerate(p95_s[30:]) if value < ALERT_S / 2), len(p95_s))
