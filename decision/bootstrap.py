"""How sure a mean is: bootstrap intervals over everything that was drawn, seeds as well as test texts.

Every function draws from its own generator with a fixed seed: the same numbers come out each time, and what is drawn
with the same seed is drawn alike for every candidate, so that differences stay paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK_CELLS = 4_000_000
"""Counts that are held at once: resamples of a block x items."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def crossed_mean(hits: NDArray[np.bool_], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean accuracy of runs over seeds and the test texts, with an interval that covers other seeds and other texts.

    hits [seeds, items]. Seeds and items are drawn independently, with replacement; of n seeds, n - 1 are drawn, so that
    few seeds that differ much do not look surer than they are. A little too wide where seed and item interact. With one
    seed only the items are drawn.
    Sources: Owen 2007, "The pigeonhole bootstrap"; Rao and Wu 1988, "Resampling Inference With Complex Survey Data".
    """
    return crossed_interval(resample_items(hits, resamples, seed), hits.mean(axis=1), seed)


def crossed_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean accuracy of the first less that of the second, paired.

    first, second [seeds, items]: row and column stand for the same seed and the same text in both. Raises ValueError.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two have shapes {first.shape} and {second.shape}; a pair has the same seeds and items")
    both = resample_items(np.concatenate((first, second)), resamples, seed)
    drawn = both[: len(first)] - both[len(first) :]
    return crossed_interval(drawn, first.mean(axis=1) - second.mean(axis=1), seed)


def resample_items(hits: NDArray[np.bool_], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Each row's mean over items that are drawn with replacement, the same draws for every row.

    hits [rows, items] -> [rows, resamples]. This is the expensive half: one call does all runs on the same test.
    """
    num_items = hits.shape[1]
    generator = np.random.default_rng([seed, 0])
    values = hits.astype(np.float32)  # sums of counts are whole numbers below 2**24: exact
    block = max(1, BLOCK_CELLS // num_items)
    means: Floats = np.empty((len(hits), resamples))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        picks = generator.integers(0, num_items, (size, num_items), dtype=np.int32)
        places = picks + num_items * np.arange(size, dtype=np.int32)[:, None]
        counts = np.bincount(places.ravel(), minlength=size * num_items).astype(np.float32)
        means[:, start : start + size] = values @ counts.reshape(size, num_items).T  # [rows, size]
    means /= num_items
    return means


def crossed_interval(drawn: Floats, by_seed: Floats, seed: int = 0) -> Interval:
    """Draw seeds too. drawn [seeds, resamples]: what `resample_items` gave; by_seed [seeds]: the value of each seed."""
    num_seeds, resamples = drawn.shape
    counts = _seed_counts(num_seeds, resamples, np.random.default_rng([seed, 1]))
    return percentile_interval(float(by_seed.mean()), (counts * drawn.T).sum(axis=1) / counts[0].sum())


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
    """Draw seeds within every task. tasks: for each [seeds] -> for each [resamples, seeds]."""
    generator = np.random.default_rng([seed, 2])
    return [task[generator.integers(0, len(task), (resamples, len(task)))] for task in tasks]


def percentile_interval(value: float, drawn: Floats) -> Interval:
    """drawn [resamples]: what the value was in each of them."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return Interval(value, float(low), float(high))


def _seed_counts(num_seeds: int, resamples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """How often each seed was drawn, of n of them n - 1 at a time. [resamples, seeds]"""
    return generator.multinomial(max(1, num_seeds - 1), np.full(num_seeds, 1 / num_seeds), size=resamples)
