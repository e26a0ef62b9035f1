"""What a training run shows beside its accuracy: how soon it learnt, whether at all, and what tuning brought."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHARE_OF_FINAL = 0.95
COLLAPSE_MARGIN = 0.01
"""A run that beats the majority's accuracy by no more has learnt nothing."""
ROUNDING = 1e-9


def steps_to_share(curve: Sequence[tuple[int, float]], share: float = SHARE_OF_FINAL) -> int | None:
    """The first step at which validation accuracy had reached that share of its last value; None without a curve.

    As fine as the curve: a run that is measured every 50 steps cannot answer 20.
    """
    if not curve:
        return None
    ordered = sorted(curve)
    wanted = share * ordered[-1][1] - ROUNDING
    return next(step for step, accuracy in ordered if accuracy >= wanted)


def has_collapsed(accuracy: float, majority_accuracy: float) -> bool:
    """Whether a run is no better than always saying the most frequent label."""
    return accuracy <= majority_accuracy + COLLAPSE_MARGIN + ROUNDING


def expected_best(accuracies: Sequence[float]) -> NDArray[np.float64]:
    """Best validation accuracy to expect from 1, 2, ... trials that are drawn from these. [trials]

    Source: Dodge et al. 2019, "Show Your Work": the empirical distribution, drawn with replacement.
    """
    ordered = np.sort(np.asarray(accuracies, dtype=np.float64))
    below = np.arange(len(ordered) + 1) / len(ordered)  # share of trials up to each one
    budgets = np.arange(1, len(ordered) + 1)[:, None]
    return np.asarray(np.diff(below**budgets, axis=1) @ ordered)
