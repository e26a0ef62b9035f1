"""Measures of every problem type with 95 % intervals, and what is fitted on validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.manifest import Metric

Z95 = 1.959964
RESAMPLES = 1000
LOG_BOUND = math.log(20)
THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""0.05 to 0.95: finer steps would only follow the noise of a few hundred validation rows."""

Truth = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of similar confidence. share: of all rows; confidence and accuracy: their means here."""

    share: float
    confidence: float
    accuracy: float
    num_rows: int


def accuracy(truth: Truth, predicted: Truth) -> Metric:
    """Share of rows that are wholly right, with its Wilson interval (Wilson 1927).

    truth, predicted [rows] or [rows, labels]: of several labels, all must be right (subset accuracy).
    """
    right = truth == predicted
    n, p = len(truth), float(right.reshape(len(truth), -1).all(1).mean())
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Metric(p, max(0.0, centre - half), min(1.0, centre + half), n)


def macro_f1(truth: Truth, predicted: Truth, num_labels: int) -> Metric:
    """Mean F1 over the labels that occur, with a percentile bootstrap over rows.

    truth, predicted [rows], the label's index, or [rows, labels], 0 or 1.
    """
    return _bootstrapped(lambda t, p: _mean_f1(*_counts(t, p, num_labels)), truth, predicted)


def micro_f1(truth: Truth, predicted: Truth) -> Metric:
    """`pooled_f1` with a percentile bootstrap over rows."""
    return _bootstrapped(pooled_f1, truth, predicted)


def pearson(truth: Values, predicted: Values) -> Metric:
    """Linear correlation with a percentile bootstrap over rows. truth, predicted [rows]."""
    return _bootstrapped(correlation, truth, predicted)


def spearman(truth: Values, predicted: Values) -> Metric:
    """Correlation of the ranks, equal values sharing theirs."""
    from scipy.stats import rankdata

    return _bootstrapped(lambda t, p: correlation(rankdata(t), rankdata(p)), truth, predicted)


def rmse(truth: Values, predicted: Values) -> Metric:
    """Root of the mean squared error, in the data's own unit."""
    return _bootstrapped(lambda t, p: float(np.sqrt(np.mean((t - p) ** 2))), truth, predicted)


def negative_log_likelihood(logits: Values, truth: Truth) -> Metric:
    """Mean surprise at the truth, in nats, a row or, of several labels, a decision; bootstrapped over rows.

    logits, truth: as `fit_temperature` takes them.
    """
    surprise = _surprise_of_several(logits, truth).mean(1) if truth.ndim == 2 else _surprise_of_one(logits, truth)
    return _bootstrapped(lambda t, p: float(p.mean()), truth, surprise)


def expected_calibration_error(probabilities: Values, truth: Truth, num_bins: int = 15) -> float:
    """How far confidence and accuracy lie apart: over bins of confidence, the mean gap, weighted by rows.

    probabilities [rows, labels], whose largest is the confidence; truth [rows], the label's index. Bins have equal
    width and hold their upper edge. Source: Guo et al. 2017, equation 3.
    """
    return sum(one.share * abs(one.accuracy - one.confidence) for one in reliability(probabilities, truth, num_bins))


def reliability(probabilities: Values, truth: Truth, num_bins: int = 15) -> list[Bin]:
    """The bins of `expected_calibration_error`, those without rows left out."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64), 1, num_bins) - 1
    return [
        Bin(float(here.mean()), float(confidence[here].mean()), float(right[here].mean()), int(here.sum()))
        for here in (bins == index for index in range(num_bins))
        if bool(here.any())
    ]


def fit_temperature(logits: Values, truth: Truth) -> float:
    """The temperature that makes softmax(logits / T), or sigmoid(logits / T), fit best, by likelihood.

    logits [rows, labels] of rows that were not trained on; truth [rows], the label's index, for softmax, or
    [rows, labels], 0 or 1, for sigmoid. The likelihood is unimodal in 1 / T, so a golden-section search over log T
    finds it. Where every row is right, or the search runs to a bound, the rows cannot tell, and the temperature stays
    1. Source: Guo et al. 2017, section 4.2.
    """
    several = truth.ndim == 2
    if bool((((logits > 0) == truth) if several else (logits.argmax(1) == truth)).all()):
        return 1.0
    surprise = _surprise_of_several if several else _surprise_of_one
    low, high, ratio = -LOG_BOUND, LOG_BOUND, (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        return float(surprise(logits / math.exp(log_temperature), truth).mean())

    while high - low > 1e-4:
        step = ratio * (high - low)
        low, high = (low, low + step) if loss(high - step) < loss(low + step) else (high - step, high)
    found = (low + high) / 2
    return round(math.exp(found), 4) if abs(found) < LOG_BOUND - 0.01 else 1.0


def fit_threshold(probabilities: Values, truth: Truth) -> float:
    """The threshold of `THRESHOLDS` with the best micro-F1, of equal ones that nearest to 0.5.

    probabilities, truth [rows, labels] of rows that were not trained on.
    """
    return max(THRESHOLDS, key=lambda one: (pooled_f1(truth, at_least(probabilities, one)), -abs(one - 0.5)))


def at_least(probabilities: Values, threshold: float) -> Truth:
    """1 for every label at or above the threshold, 0 for the others."""
    return (probabilities >= threshold).astype(np.int64)


def pooled_f1(truth: Truth, predicted: Truth) -> float:
    """F1 over all labels of all rows together; 0 where there are none. truth, predicted [rows, labels]."""
    both = int(truth.sum() + predicted.sum())
    return 2 * int((truth * predicted).sum()) / both if both else 0.0


def correlation(one: Values, other: Values) -> float:
    """Pearson's; 0 where one side is constant, which tells nothing of the other."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _bootstrapped(
    measure: Callable[[NDArray[Any], NDArray[Any]], float],
    truth: NDArray[Any],
    predicted: NDArray[Any],
    seed: int = 0,
) -> Metric:
    rng, n = np.random.default_rng(seed), len(truth)
    draws = (rng.integers(0, n, n) for _ in range(RESAMPLES))
    low, high = np.percentile([measure(truth[rows], predicted[rows]) for rows in draws], [2.5, 97.5])
    return Metric(measure(truth, predicted), float(low), float(high), n)


def _counts(truth: Truth, predicted: Truth, num_labels: int) -> tuple[Truth, Truth]:
    """Of every label, how often it is right, and how often it occurs on both sides together."""
    if truth.ndim == 2:
        return (truth * predicted).sum(0), truth.sum(0) + predicted.sum(0)
    both = np.bincount(truth, minlength=num_labels) + np.bincount(predicted, minlength=num_labels)
    return np.bincount(truth[truth == predicted], minlength=num_labels), both


def _mean_f1(hits: Truth, both: Truth) -> float:
    return float((2 * hits[both > 0] / both[both > 0]).mean()) if bool((both > 0).any()) else 0.0


def _surprise_of_one(logits: Values, truth: Truth) -> Values:
    peak = logits.max(1, keepdims=True)
    found: Values = np.log(np.exp(logits - peak).sum(1)) + peak[:, 0] - logits[np.arange(len(truth)), truth]
    return found


def _surprise_of_several(logits: Values, truth: Truth) -> Values:
    found: Values = np.logaddexp(0, logits) - truth * logits
    return found
