"""The simulation of fleets: it agrees with theory where there is one, and with what was measured."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import affinity, autoscaler, courses, sheet
from benchmarks.scaling.autoscaler import Curve, Rule, follow
from benchmarks.scaling.fleet import Happening, Layout, Outcome, simulate
from benchmarks.scaling.live import compared
from benchmarks.scaling.pace import Pace, measured
from benchmarks.scaling.policies import BOUNDED, HASH, LEAST, POLICIES, RANDOM, SPREADING, BoundedHash, View
from benchmarks.scaling.ring import Ring
from benchmarks.scaling.setting import Chart, Setting
from benchmarks.scaling.theory import fewest_homes, lru_hit_rate, md1_wait_s, mm1_wait_s, zipf
from benchmarks.scaling.traffic import Traffic, bursts, poisson, popular, traffic
from decision.cost import Prices
from decision.evidence import Evidence
from docs import generate, scaling_figures
from tests.drawings import is_same_drawing

ONE_BY_ONE = Pace(fixed_s=0.0, token_s=0.001, adapter_s=0.0, beside_s=0.0, batch_tokens=1)
"""A millisecond for a token, one request a batch: the single server of the textbooks."""
PACE = Pace(fixed_s=0.006, token_s=1e-4, adapter_s=1e-4, beside_s=0.004, batch_tokens=700)
MEAN_TOKENS = 20.0


def one_server(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], rate_per_s: float) -> Outcome:
    came_s = poisson(rate_per_s, len(tokens), np.random.default_rng(1))
    asked = Traffic(came_s, np.zeros(len(tokens), dtype=np.int64), tokens)
    return simulate(Layout(ONE_BY_ONE, RANDOM, 1, 1, 0.0), asked, np.ones(1))


def fleet(policy: str, load: float = 0.4, num_replicas: int = 4, room: int = 100, **changes: object) -> Outcome:
    layout = replace(Layout(PACE, policy, num_replicas, room, 0.001), **changes)  # type: ignore[arg-type]
    rng = np.random.default_rng(2)
    shares = popular(300, 1.0, rng)
    rate = load * num_replicas * PACE.capacity_per_s(MEAN_TOKENS)
    return simulate(layout, traffic(poisson(rate, 8_000, rng), shares, MEAN_TOKENS, rng), shares)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_the_wait_for_constant_work_is_that_of_an_m_d_1_queue(load: float) -> None:
    outcome = one_server(np.full(60_000, 10), load / 0.01)
    assert outcome.queue_s.mean() == pytest.approx(md1_wait_s(load / 0.01, 0.01), rel=0.1)
    assert outcome.busy == pytest.approx(load, rel=0.05)


def test_the_wait_for_exponential_work_is_that_of_an_m_m_1_queue() -> None:
    tokens = np.rint(np.random.default_rng(3).exponential(1000, 60_000)).astype(np.int64) + 1
    outcome = one_server(tokens, 0.6)
    assert outcome.queue_s.mean() == pytest.approx(mm1_wait_s(0.6, 1.0), rel=0.15)


@pytest.mark.parametrize(("room", "exponent"), [(20, 1.0), (100, 1.0), (100, 0.7), (200, 1.3)])
def test_the_hit_rate_of_one_cache_is_ches(room: int, exponent: float) -> None:
    rng = np.random.default_rng(4)
    shares = popular(1000, exponent, rng)
    asked = traffic(poisson(50.0, 30_000, rng), shares, MEAN_TOKENS, rng)
    outcome = simulate(Layout(PACE, RANDOM, 1, room, 0.0), asked, shares)
    assert outcome.hit_rate() == pytest.approx(lru_hit_rate(shares, room), abs=0.012)


def test_a_cache_that_was_filled_at_once_hits_as_often_as_one_that_has_run_for_long() -> None:
    rng = np.random.default_rng(5)
    shares = popular(1000, 1.0, rng)
    asked = traffic(poisson(50.0, 30_000, rng), shares, MEAN_TOKENS, rng)
    outcome = simulate(Layout(PACE, RANDOM, 1, 100, 0.0), asked, shares, warm_up=0.0)
    early, late = outcome.was_hit[:5_000].mean(), outcome.was_hit[15_000:].mean()
    assert early == pytest.approx(late, abs=0.025)


def test_ches_approximation_at_its_ends() -> None:
    shares = zipf(100, 1.0)
    assert lru_hit_rate(shares, 0) == 0.0
    assert lru_hit_rate(shares, 100) == 1.0
    assert 0.9 < lru_hit_rate(shares, 99) < 1.0


def test_a_hash_hits_as_often_as_theory_says_and_random_less() -> None:
    shares = popular(300, 1.0, np.random.default_rng(2))
    hashed, spread = fleet(HASH), fleet(RANDOM)
    assert hashed.hit_rate() == pytest.approx(affinity.hash_hit_rate(shares, 4, 100), abs=0.02)
    assert spread.hit_rate() == pytest.approx(lru_hit_rate(shares, 100), abs=0.02)
    assert spread.hit_rate() < hashed.hit_rate() - 0.1


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_once_by_whatever_policy(policy: str) -> None:
    outcome = fleet(policy)
    assert not np.isnan(outcome.latency_s).any()
    assert set(outcome.replica.tolist()) == {0, 1, 2, 3}
    assert (outcome.latency_s >= outcome.queue_s).all()


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = fleet(BOUNDED, num_routers=2), fleet(BOUNDED, num_routers=2)
    assert np.array_equal(first.latency_s, second.latency_s)
    assert not np.array_equal(first.latency_s, fleet(BOUNDED, num_routers=2, seed=1).latency_s)


def test_least_connections_waits_less_than_chance() -> None:
    assert fleet(LEAST, load=0.7).p95_ms() < fleet(RANDOM, load=0.7).p95_ms()


def test_a_lower_bound_spreads_more_and_hits_less() -> None:
    outcomes = [fleet(BOUNDED, bound_percent=bound, load=0.3) for bound in (110, 200, 1000)]
    hits = [outcome.hit_rate() for outcome in outcomes]
    assert hits == sorted(hits)
    assert hits[2] - hits[0] > 0.05


def test_no_replica_is_given_more_than_the_bound_allows() -> None:
    """As HAProxy counts: the router's requests with this one, times the bound, rounded up, shared out evenly."""
    ring, view = Ring(4, 50), View(4)
    policy = BoundedHash(ring, 125)
    rng = np.random.default_rng(6)
    for adapter in rng.integers(3, size=200).tolist():  # three adapters: without a bound three replicas at most
        replica = policy.choose(adapter, view)
        view.under_way[replica] += 1
        view.total += 1
        assert view.under_way[replica] <= max(1, -(-view.total * 125 // 400) + 1)
    assert min(view.under_way) > 0


def test_a_hash_without_a_bound_keeps_each_adapter_at_home() -> None:
    ring, view = Ring(5, 40), View(5)
    assert [BoundedHash(ring, None).choose(one, view) for one in range(40)] == ring.homes.tolist()


def test_each_replica_is_home_to_about_its_part() -> None:
    counts = Counter(Ring(8, 20_000).homes.tolist())
    assert min(counts.values()) > 0.85 * 2_500
    assert max(counts.values()) < 1.15 * 2_500


def test_a_replica_that_goes_moves_only_its_own_adapters() -> None:
    ring, view = Ring(4, 1000), View(4)
    policy = BoundedHash(ring, None)
    view.set_up([0, 1, 3])
    moved = [one for one in range(1000) if policy.choose(one, view) != ring.homes[one]]
    assert moved == np.flatnonzero(ring.homes == 2).tolist()
    assert len({policy.choose(one, view) for one in moved}) == 3


def test_a_replica_more_takes_its_part_from_each_other() -> None:
    assert affinity.num_moved(4, 10_000) == pytest.approx(1 / 5, abs=0.03)


def test_a_walk_meets_every_replica_once() -> None:
    ring = Ring(6, 30)
    for adapter in range(30):
        walk = list(ring.walk(adapter))
        assert sorted(walk) == list(range(6))
        assert walk[0] == ring.homes[adapter]


def test_a_killed_replica_loses_no_request() -> None:
    rng = np.random.default_rng(7)
    shares = popular(300, 1.0, rng)
    rate = 0.5 * 4 * PACE.capacity_per_s(MEAN_TOKENS)
    asked = traffic(poisson(rate, 8_000, rng), shares, MEAN_TOKENS, rng)
    layout = Layout(PACE, BOUNDED, 4, 100, 0.001)
    outcome = simulate(layout, asked, shares, [Happening(2.0, 1, "kill", 3.0)])
    assert outcome.num_resent > 0
    assert not np.isnan(outcome.latency_s).any()
    away = (outcome.came_s > 2.0) & (outcome.came_s < 5.0)
    assert 1 not in outcome.replica[away]
    assert 1 in outcome.replica[outcome.came_s > 5.5]


def test_a_drained_replica_answers_what_it_has_taken() -> None:
    rng = np.random.default_rng(8)
    shares = popular(300, 1.0, rng)
    rate = 0.5 * 4 * PACE.capacity_per_s(MEAN_TOKENS)
    asked = traffic(poisson(rate, 6_000, rng), shares, MEAN_TOKENS, rng)
    outcome = simulate(Layout(PACE, HASH, 4, 100, 0.001), asked, shares, [Happening(1.0, 0, "drain", 1.0)])
    assert outcome.num_resent == 0
    assert not np.isnan(outcome.latency_s).any()


def test_users_that_wait_for_their_answers_never_have_more_under_way_than_there_are() -> None:
    rng = np.random.default_rng(9)
    shares = popular(50, 1.0, rng)
    asked = traffic(poisson(1.0, 5_000, rng), shares, MEAN_TOKENS, rng)
    outcome = simulate(Layout(PACE, RANDOM, 1, 50, 0.0), asked, shares, num_users=8)
    spent_s = outcome.came_s[-1] - outcome.came_s[0]
    assert len(outcome.came_s) / spent_s == pytest.approx(8 / outcome.latency_s.mean(), rel=0.05)  # Little's law


def test_bursts_bring_as_much_more_as_they_say() -> None:
    came_s = bursts(100.0, 100.0, 4.0, 10.0, 2.0, np.random.default_rng(10))
    is_burst = came_s % 10 < 2
    assert is_burst.sum() / 20 == pytest.approx(400, rel=0.05)
    assert (~is_burst).sum() / 80 == pytest.approx(100, rel=0.05)


def test_an_adapter_needs_as_many_homes_as_its_part_of_the_traffic_says() -> None:
    assert fewest_homes(0.1, 8, 1.25) == 1
    assert fewest_homes(0.5, 8, 1.25) == 4
    assert fewest_homes(0.5, 8, 2.0) == 2
    assert fewest_homes(1.0, 8, 1.0) == 8


CURVE = Curve(
    rate_per_s=np.array([10.0, 50.0, 80.0, 95.0]),
    queue_s=np.array([0.001, 0.01, 0.03, 0.1]),
    p95_s=np.array([0.02, 0.04, 0.08, 0.3]),
    busy=np.array([0.1, 0.5, 0.8, 0.95]),
    capacity_per_s=100.0,
)
RULE = Rule("test", 2, 20, rate_per_s=60.0)


def test_the_autoscaler_wants_the_replicas_that_the_metric_asks_for() -> None:
    course = follow(RULE, CURVE, autoscaler.step(1800, 300, 100.0, 470.0))
    assert course.replicas[-1] == 8
    assert course.replicas.max() <= 9
    assert course.ready[300 + 30] == 2  # the new ones take a minute to start
    assert course.ready[-1] == 8


def test_the_autoscaler_at_most_doubles_within_a_minute() -> None:
    course = follow(RULE, CURVE, autoscaler.step(1800, 300, 100.0, 1000.0))
    for second in range(60, 1800):
        assert course.replicas[second] <= 2 * course.replicas[second - 60]


def test_replicas_go_one_a_minute_after_the_window() -> None:
    course = follow(RULE, CURVE, autoscaler.step(3600, 300, 480.0, 60.0), start=8)
    left = np.flatnonzero(np.diff(course.replicas) < 0)
    assert left[0] >= 300 + RULE.scale_down_s
    assert (np.diff(left) >= 60).all()
    assert course.replicas[-1] == 2


def test_a_metric_within_a_tenth_of_its_target_changes_nothing() -> None:
    course = follow(RULE, CURVE, [5 * 60.0 * 1.05] * 1200, start=5)
    assert course.num_changes() == 0


def test_a_wait_alone_gives_replicas_back_until_there_are_too_few() -> None:
    """A wait is next to nothing until it is too long: no proportional rule can hold it."""
    waits = Rule("wait", 2, 20, queue_s=0.1)
    course = follow(waits, CURVE, [400.0] * 7200, start=6)
    assert course.num_changes() > 4
    assert course.violated_part(0.1) > 0.05
    rates = Rule("rate", 2, 20, rate_per_s=70.0)
    calm = follow(rates, CURVE, [400.0] * 7200, start=6)
    assert calm.num_changes() == 0
    assert calm.violated_part(0.1) == 0


def test_what_cannot_be_answered_within_the_longest_wait_is_refused() -> None:
    course = follow(Rule("fixed", 2, 2), CURVE, [400.0] * 300)
    assert course.refused_per_s[-1] == pytest.approx(200.0, rel=0.3)
    assert course.p95_s.max() < 31


@pytest.fixture(scope="module")
def setting() -> Setting:
    found = measured(Evidence.read())
    assert found is not None
    return Setting(found, Chart.read(), Prices.read(), size=0.1)


def test_the_pace_follows_the_rows(setting: Setting) -> None:
    found = setting.measured
    assert found.num_rows >= 6
    assert found.median_error < 0.3
    assert found.pace.fixed_s >= 0
    assert found.pace.token_s > 0
    assert 50 < setting.capacity_per_s < 100_000
    assert found.pace.batch_tokens >= 64


def test_too_few_rows_are_no_pace() -> None:
    evidence = Evidence.read()
    assert measured(replace(evidence, latencies=evidence.latencies[:3])) is None
    assert measured(evidence, device="cpu", dtype="float8") is None


def test_following_a_fleet_by_the_second_agrees_with_simulating_each_request(setting: Setting) -> None:
    found = courses.curve(setting)
    checked = courses.check(setting, found)
    assert checked.followed_worst_ms == pytest.approx(checked.simulated_worst_ms, rel=0.35)
    assert abs(checked.followed_drained_s - checked.simulated_drained_s) <= 4


def test_every_line_of_the_sheet_says_whether_it_was_measured(setting: Setting) -> None:
    lines = sheet.sheet(setting, courses.curve(setting))
    kinds = Counter(line.kind for line in lines)
    assert kinds["assumed"] >= 5
    assert kinds["measured"] >= 2
    assert all(line.source for line in lines if line.kind in ("measured", "assumed"))


def test_the_figures_that_are_committed_say_where_they_come_from() -> None:
    record = json.loads((Path(__file__).parent.parent / "benchmarks" / "results" / "scaling.json").read_text())
    assert record["command"] == "python -m benchmarks.scaling"
    assert {"machine", "versions", "commit", "created", "seed", "measured"} <= record.keys()


def test_the_live_run_is_held_against_the_simulation() -> None:
    live = {"hit_rate": 0.97}
    record = {
        "num_replicas": 3, "num_adapters": 300, "room": 0.4, "zipf_s": 1.0, "rate_per_s": 60.0, "spell_s": 15.0,
        "balance_percent": 1000, "affinity": {"affinity": live, "random": {"hit_rate": 0.8}},
    }  # fmt: skip
    affine, spread = compared(record, PACE, 0.001)
    assert (affine.routing, affine.measured, spread.routing) == ("affinity", 0.97, "random")
    assert affine.simulated > spread.simulated + 0.1
    assert affine.theory > spread.theory + 0.1
    assert compared({}, PACE, 0.001) == []


@pytest.mark.parametrize("name", scaling_figures.FIGURES)
def test_figures_are_fresh(name: str) -> None:
    kept = (generate.DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert is_same_drawing(kept, scaling_figures.FIGURES[name]().decode()), "run `make docs`"


def test_spreading_policies_know_nothing_of_adapters() -> None:
    for policy in SPREADING:
        outcome = fleet(policy)
        assert set(outcome.replica[outcome.adapter == outcome.adapter[0]].tolist()) == {0, 1, 2, 3}
