"""Intervals, tests and curves, each against a plain way to the same number."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from decision.bootstrap import (
    Interval,
    crossed_difference,
    crossed_interval,
    crossed_mean,
    interquartile_mean,
    mean_of,
    probability_of_improvement,
)
from decision.comparison import holm, non_inferiority, shown_better, sign_flip_p
from decision.outcomes import expected_best, has_collapsed, steps_to_share


def hits(num_seeds: int, num_items: int, level: float = 0.8, seed: int = 0) -> NDArray[np.bool_]:
    """Runs that share easy and hard items, and differ by seed."""
    generator = np.random.default_rng(seed)
    odds = np.log(level / (1 - level)) + generator.normal(0, 1, num_items) + generator.normal(0, 0.3, (num_seeds, 1))
    return np.asarray(generator.random((num_seeds, num_items)) < 1 / (1 + np.exp(-odds)))


def drawn(values: NDArray[np.float64], resamples: int) -> NDArray[np.float64]:
    """The means of the crossed bootstrap as one would write it down: one resample after the other."""
    num_seeds, num_items = values.shape
    generator = np.random.default_rng(0)
    means = []
    for _ in range(resamples):
        seeds = generator.integers(0, num_seeds, max(1, num_seeds - 1))
        means.append(values[np.ix_(seeds, generator.integers(0, num_items, num_items))].mean())
    return np.array(means)


def assert_same(found: Interval, expected: Interval) -> None:
    ends = [(one.value, one.low, one.high) for one in (found, expected)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-12)


@pytest.mark.parametrize("num_seeds", [1, 2, 5])
@pytest.mark.parametrize("is_difference", [False, True])
def test_the_interval_is_that_of_a_bootstrap_that_is_drawn(num_seeds: int, is_difference: bool) -> None:
    first, second = hits(num_seeds, 200, 0.8, 1), hits(num_seeds, 200, 0.7, 2)
    values = first.astype(float) - is_difference * second.astype(float)
    found = crossed_difference(first, second) if is_difference else crossed_mean(first)
    means = drawn(values, 20_000)
    assert found.value == pytest.approx(values.mean())
    spread = (found.high - found.low) / 2 / 1.959964
    assert spread == pytest.approx(means.std(), rel=0.02)  # 4 standard errors of a spread of 20,000 draws
    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(means, (2.5, 97.5))), abs=0.15 * spread + 0.5 / 200
    )


@pytest.mark.parametrize(("num_seeds", "num_items"), [(2, 2), (3, 2), (2, 3)])
def test_the_variance_is_that_over_all_draws_there_are(num_seeds: int, num_items: int) -> None:
    values = np.random.default_rng(num_seeds).normal(size=(num_seeds, num_items))
    means = [
        values[np.ix_(seeds, items)].mean()
        for seeds in itertools.product(range(num_seeds), repeat=num_seeds - 1)
        for items in itertools.product(range(num_items), repeat=num_items)
    ]
    found = crossed_interval(values)
    assert found.value == pytest.approx(np.mean(means))
    assert found.high - found.value == pytest.approx(1.959964 * np.std(means))


def test_an_accuracy_is_never_below_0_or_above_1() -> None:
    nearly = np.ones((3, 10), dtype=bool)
    nearly[0, 0] = False
    assert crossed_mean(nearly).high == 1
    assert crossed_mean(~nearly).low == 0


def test_the_mean_of_tasks_is_as_sure_as_their_variances_say() -> None:
    tasks = [crossed_mean(hits(5, 300, level, seed=index)) for index, level in enumerate((0.6, 0.8, 0.9))]
    found = mean_of(tasks)
    assert found.value == pytest.approx(np.mean([task.value for task in tasks]))
    variance = sum((task.value - task.low) ** 2 for task in tasks) / 9
    assert (found.value - found.low) ** 2 == pytest.approx(variance)
    assert_same(mean_of(tasks[:1]), tasks[0])


@pytest.mark.parametrize("level", [0.6, 0.9])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(level: float) -> None:
    """Seeds and items are drawn anew in every round; the truth is the mean over very many of both."""
    truth = float(hits(400, 20_000, level, seed=99).mean())
    covered = []
    for round_seed in range(200):
        found = crossed_mean(hits(8, 150, level, seed=1000 + round_seed))
        covered.append(found.low <= truth <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.995


def test_with_five_seeds_that_differ_much_the_interval_is_too_narrow() -> None:
    """The report says so."""
    generator, covered = np.random.default_rng(0), []
    for _ in range(200):
        levels = generator.normal(0.8, 0.05, (5, 1))
        found = crossed_mean(generator.random((5, 500)) < levels)
        covered.append(found.low <= 0.8 <= found.high)
    assert 0.80 <= np.mean(covered) <= 0.94


def test_an_interval_over_items_alone_would_be_too_narrow() -> None:
    """Why seeds are drawn too: where they differ much, more items do not help."""
    generator = np.random.default_rng(0)
    runs = np.stack([generator.random(2000) < level for level in (0.7, 0.75, 0.8, 0.85, 0.9)])
    crossed, items_only = crossed_mean(runs), crossed_mean(runs.mean(axis=0, keepdims=True))
    assert crossed.high - crossed.low > 3 * (items_only.high - items_only.low)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_seeds=st.integers(1, 6), num_items=st.integers(1, 40))
def test_a_candidate_is_never_worse_than_itself(seed: int, num_seeds: int, num_items: int) -> None:
    runs = hits(num_seeds, num_items, seed=seed)
    found = crossed_difference(runs, runs)
    assert found == Interval(0, 0, 0)
    assert non_inferiority(found) == "not worse"


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_turning_a_comparison_around_turns_its_sign(seed: int) -> None:
    first, second = hits(4, 30, seed=seed), hits(4, 30, seed=seed + 1)
    forth, back = crossed_difference(first, second), crossed_difference(second, first)
    assert_same(forth, Interval(-back.value, -back.high, -back.low))


def test_intervals_shrink_with_more_seeds_and_with_more_items() -> None:
    def width(num_seeds: int, num_items: int) -> float:
        found = [crossed_mean(hits(num_seeds, num_items, seed=seed)) for seed in range(5)]
        return float(np.mean([each.high - each.low for each in found]))

    assert width(20, 400) < 0.75 * width(5, 400)
    assert width(20, 400) < 0.75 * width(20, 50)


def test_pairing_narrows_a_difference() -> None:
    """The same items are drawn for both, so what is hard for both cancels."""
    easy = np.random.default_rng(0).random(300) < 0.7
    flips = np.random.default_rng(1).random((2, 5, 300)) < 0.03
    first, second = easy ^ flips[0], easy ^ flips[1]
    paired = crossed_difference(first, second)
    alone = crossed_mean(first)
    assert paired.high - paired.low < 0.6 * (alone.high - alone.low)


def test_a_pair_of_different_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="same seeds and items"):
        crossed_difference(hits(3, 10), hits(2, 10))


def enumerated(differences: list[int]) -> float:
    """Share of all ways to flip signs whose sum is as far from 0."""
    flipped = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= abs(sum(differences)) for value in flipped) / len(flipped)


@settings(deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=8))
def test_the_sign_flip_test_equals_enumeration(differences: list[int]) -> None:
    assert sign_flip_p(np.array(differences)) == pytest.approx(enumerated(differences))


@pytest.mark.parametrize(("num_seeds", "smallest"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125), (10, 2 / 1024)])
def test_the_smallest_p_is_what_so_many_seeds_allow(num_seeds: int, smallest: float) -> None:
    assert sign_flip_p(np.arange(1, num_seeds + 1)) == pytest.approx(smallest)


def test_many_seeds_are_flipped_at_random_and_alike_each_time() -> None:
    differences = np.random.default_rng(0).normal(0.5, 1, 20)
    exact = np.random.default_rng(1).choice((-1, 1), (200_000, 20)) @ differences
    share = float(np.mean(np.abs(exact) >= abs(differences.sum())))
    assert sign_flip_p(differences) == pytest.approx(share, abs=0.005)
    assert sign_flip_p(differences) == sign_flip_p(differences)


def test_no_difference_at_all_has_p_1() -> None:
    assert sign_flip_p(np.zeros(5, dtype=np.int64)) == 1


def test_one_candidate_is_shown_better_where_its_interval_lies_above_zero_and_many_need_more() -> None:
    above, wide, nothing = Interval(0.03, 0.001, 0.06), Interval(0.03, -0.001, 0.06), Interval(0.0, -0.02, 0.02)
    clear = Interval(0.05, 0.03, 0.07)
    assert shown_better([above]) == [True]
    assert shown_better([wide]) == [False]
    assert shown_better([above, *[nothing] * 5]) == [False] * 6
    assert shown_better([above, clear, nothing]) == [False, True, False]
    assert shown_better([clear, above]) == [True, True]  # the second is held to less, after Holm
    assert shown_better([Interval(0.0, 0.0, 0.0), Interval(0.01, 0.01, 0.01)]) == [False, True]
    assert shown_better([]) == []


def test_holm_gives_the_worked_example() -> None:
    """The example of Wikipedia's article: 0.01, 0.04, 0.03, 0.005 at 0.05 reject the first and the last."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1, 1]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(up >= p for p, up in zip(p_values, adjusted, strict=True))
    for (p, up), (q, vp) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert (up <= vp) if p <= q else (vp <= up)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.0099, 0.01, "not worse"),
        (-0.01, 0.01, "undecided"),  # the margin itself may not be lost
        (-0.03, -0.01, "undecided"),
        (-0.03, -0.0101, "worse"),
        (0.01, 0.02, "not worse"),
    ],
)
def test_a_verdict_changes_at_the_margin(low: float, high: float, verdict: str) -> None:
    assert non_inferiority(Interval((low + high) / 2, low, high), 0.01) == verdict


def test_the_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    tasks = [np.array([0.1, 0.5]), np.array([0.6, 0.62]), np.array([0.64, 0.66]), np.array([0.9, 1.0])]
    found = interquartile_mean(tasks, 500)
    assert found.value == pytest.approx((0.6 + 0.62 + 0.64 + 0.66) / 4)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(stats.trim_mean(np.concatenate(tasks), 0.25))


def test_the_interquartile_means_interval_draws_within_tasks_only() -> None:
    """Tasks that differ wildly, seeds that do not: nothing is unsure."""
    found = interquartile_mean([np.full(5, level) for level in (0.2, 0.5, 0.7, 0.9)], 200)
    assert found.low == pytest.approx(found.value)
    assert found.high == pytest.approx(found.value)


def test_the_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    first = [np.array([0.9, 0.8, 0.7]), np.array([0.5])]
    second = [np.array([0.8, 0.8, 0.8]), np.array([0.4])]
    found = probability_of_improvement(first, second, 200)
    assert found.value == pytest.approx(((1 + 0.5 + 0) / 3 + 1) / 2)
    back = probability_of_improvement(second, first, 200)
    assert found.value + back.value == pytest.approx(1)
    assert probability_of_improvement(first, first, 50) == Interval(0.5, 0.5, 0.5)


def test_steps_to_a_share_are_the_first_that_reach_it() -> None:
    curve = [(50, 0.3), (100, 0.76), (150, 0.7), (200, 0.8)]
    assert steps_to_share(curve) == 100  # 0.95 x 0.8, exactly
    assert steps_to_share(curve[::-1]) == 100
    assert steps_to_share(curve, 0.96) == 200
    assert steps_to_share([]) is None


def test_a_run_has_collapsed_up_to_a_point_above_the_majority() -> None:
    assert has_collapsed(0.21, 0.2)
    assert not has_collapsed(0.2101, 0.2)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_the_expected_best_equals_the_mean_over_all_ways_to_draw(accuracies: list[float]) -> None:
    found = expected_best(accuracies)
    for budget in range(1, len(accuracies) + 1):
        ways = [max(way) for way in itertools.product(accuracies, repeat=budget)]
        assert found[budget - 1] == pytest.approx(np.mean(ways))
    assert np.all(np.diff(found) >= -1e-12)
