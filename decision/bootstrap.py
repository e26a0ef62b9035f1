"""How sure a mean is: intervals over everything that was drawn, seeds as well as test texts.

The crossed bootstrap of a mean has a variance that can be written down, so nothing is drawn for it: the same runs give
the same interval everywhere, and at once. What is drawn after all comes from a generator with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
QUANTILE = NormalDist().inv_cdf((1 + LEVEL) / 2)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def crossed_mean(hits: NDArray[np.bool_]) -> Interval:
    """Mean accuracy of runs over seeds and the test texts, with an interval that covers other seeds and other texts.

    hits [seeds, items]; as `crossed_interval`, and never beyond 0 and 1.
    """
    found = crossed_interval(hits.astype(np.float64))
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def crossed_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
    """Mean accuracy of the first less that of the second, paired.

    first, second [seeds, items]: row and column stand for the same seed and the same text in both. Raises ValueError.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two have shapes {first.shape} and {second.shape}; a pair has the same seeds and items")
    return crossed_interval(first.astype(np.float64) - second.astype(np.float64))


def crossed_interval(values: Floats) -> Interval:
    """Mean of values [seeds, items], and its interval by the normal curve with the crossed bootstrap's variance.

    That bootstrap draws seeds and items independently, with replacement; of n seeds it draws n - 1, so that few seeds
    that differ much do not look surer than they are. Over all draws there could be, its mean varies by
    a / (n - 1) + b / m + c / ((n - 1) m), where a, b and c are the variances of the seeds' means, of the items' means,
    and of what is left of the values without both. A little too wide where seed and item interact. With one seed only
    the items count.
    Sources: Owen 2007, "The pigeonhole bootstrap"; Rao and Wu 1988, "Resampling Inference With Complex Survey Data".
    """
    num_seeds, num_items = values.shape
    of_seeds, of_items = values.mean(axis=1), values.mean(axis=0)
    mean = float(of_seeds.mean())
    rest = values - of_seeds[:, None] - of_items[None, :] + mean
    drawn = max(1, num_seeds - 1)
    variance = of_seeds.var() / drawn + of_items.var() / num_items + (rest**2).mean() / (drawn * num_items)
    half = QUANTILE * sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def mean_of(parts: Sequence[Interval]) -> Interval:
    """The mean of values that know nothing of each other, such as of several tasks, each with a normal curve."""
    value = sum(part.value for part in parts) / len(parts)
    half = hypot(*(part.value - part.low for part in parts)) / len(parts)
    return Interval(value, value - half, value + half)


def interquartile_mean(scores: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of the middle half of all runs of all tasks; the interval draws seeds within each task.

    scores: for every task [seeds]. Less noise than a median, less pull by one task than a mean; tasks are not drawn, so
    it speaks of these only. Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice", section 4.3.
    """
    from scipy.stats import trim_mean

    drawn = np.concatenate(resample_within(scores, resamples, seed), axis=1)  # [resamples, runs]
    return percentile_interval(float(trim_mean(np.concatenate(scores), 0.25)), trim_mean(drawn, 0.25, axis=1))


def probability_of_improvement(
    first: Sequence[Floats], second: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """How often the first beats the second when both are trained on the same rows, ties counting half.

    first, second: for every task [seeds], paired; every task weighs the same. The interval draws seeds within tasks.
    Paired as in Bouthillier et al. 2021, "Accounting for Variance in Machine Learning Benchmarks"; Agarwal et al. 2021
    compare all pairs of runs instead.
    """
    wins = [(np.sign(one - other) + 1) / 2 for one, other in zip(first, second, strict=True)]
    drawn = np.mean([task.mean(axis=1) for task in resample_within(wins, resamples, seed)], axis=0)  # [resamples]
    return percentile_interval(float(np.mean([task.mean() for task in wins])), drawn)


def resample_within(tasks: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0) -> list[Floats]:
    """Draw seeds within every task, of n of them n - 1. tasks: for each [seeds] -> for each [resamples, seeds]."""
    generator = np.random.default_rng([seed, 2])
    return [task[generator.integers(0, len(task), (resamples, max(1, len(task) - 1)))] for task in tasks]


def percentile_interval(value: float, drawn: Floats) -> Interval:
    """drawn [resamples]: what the value was in each of them."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return Interval(value, float(low), float(high))
