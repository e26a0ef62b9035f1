"""Accuracy and macro-F1 with 95 % intervals, and the floor that an adapter has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.manifest import Metric
from training.data import Row

Z95 = 1.959964
RESAMPLES = 1000
LOG_BOUND = math.log(20)


def accuracy(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> Metric:
    """Share of right answers with its Wilson interval (Wilson 1927)."""
    n, p = len(truth), float((truth == predicted).mean())
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Metric(p, max(0.0, centre - half), min(1.0, centre + half), n)


def macro_f1(truth: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int, seed: int = 0) -> Metric:
    """Mean F1 over the labels that occur, with a percentile bootstrap over rows."""
    rng, n = np.random.default_rng(seed), len(truth)
    draws = (rng.integers(0, n, n) for _ in range(RESAMPLES))
    samples = [_macro_f1(truth[rows], predicted[rows], num_labels) for rows in draws]
    low, high = np.percentile(samples, [2.5, 97.5])
    return Metric(_macro_f1(truth, predicted, num_labels), float(low), float(high), n)


def fit_temperature(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """The temperature that makes softmax(logits / T) fit best, by likelihood (Guo et al. 2017, section 4.2).

    logits [rows, labels] of rows that were not trained on. The likelihood is unimodal in 1 / T, so a
    golden-section search over log T finds it. Where every row is right, or the search runs to a bound,
    the rows cannot tell, and the temperature stays 1.
    """
    if bool((logits.argmax(1) == truth).all()):
        return 1.0
    low, high, ratio = -LOG_BOUND, LOG_BOUND, (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        peak = scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled - peak).sum(1)) + peak[:, 0] - scaled[np.arange(len(truth)), truth]).mean())

    while high - low > 1e-4:
        step = ratio * (high - low)
        low, high = (low, low + step) if loss(high - step) < loss(low + step) else (high - step, high)
    found = (low + high) / 2
    return round(math.exp(found), 4) if abs(found) < LOG_BOUND - 0.01 else 1.0


def floor_accuracy(train: Sequence[Row], test: Sequence[Row]) -> Metric | None:
    """A linear model on TF-IDF of words and word pairs: what an adapter must beat to be worth its cost.

    None where no such model can be fitted: the rows have no words, or one label only.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    try:
        model.fit([_joined(row) for row in train], [row.label for row in train])
    except ValueError:
        return None
    predicted = model.predict([_joined(row) for row in test])
    right = np.array([guess == row.label for guess, row in zip(predicted, test, strict=True)], dtype=np.int64)
    return accuracy(np.ones_like(right), right)


def _macro_f1(truth: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int) -> float:
    hits = np.bincount(truth[truth == predicted], minlength=num_labels)
    both = np.bincount(truth, minlength=num_labels) + np.bincount(predicted, minlength=num_labels)
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def _joined(row: Row) -> str:
    return row.text if row.text_pair is None else f"{row.text} {row.text_pair}"
