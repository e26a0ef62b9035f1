"""Whether one candidate is worse than another, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decision.bootstrap import LEVEL, QUANTILE, Interval

MARGIN = 0.01
"""Of accuracy: what one may lose without being called worse; chosen before the runs."""
SENSITIVITY_MARGINS = (0.005, 0.02)
TAIL = (1 - LEVEL) / 2
"""Of either end of an interval: what one-sided tests are held to."""

Verdict = Literal["not worse", "worse", "undecided"]


def non_inferiority(difference: Interval, margin: float = MARGIN) -> Verdict:
    """What the interval of (candidate less reference) says about a loss of more than the margin.

    The lower end of a two-sided 95 % interval is a one-sided test at 2.5 %.
    """
    if difference.low > -margin:
        return "not worse"
    return "worse" if difference.high < -margin else "undecided"


def shown_better(differences: Sequence[Interval]) -> list[bool]:
    """Of candidates that are compared with one reference: whether each is better, the chance that any is wrongly
    called so being bounded by `TAIL`, after Holm.

    By the normal curve of the intervals: with five seeds the sign-flip test knows no p below 0.06.
    """
    return [p < TAIL for p in holm([_superiority_p(one) for one in differences])]


def sign_flip_p(differences: NDArray[np.float64] | NDArray[np.int64]) -> float:
    """Exact two-sided p of paired differences, one a seed: had the two changed places in any of the seeds, how often
    would the mean be as far from 0?

    differences [seeds]. All 2^seeds ways are tried (65,536 random ones beyond 16 seeds), so the smallest p that can
    come out is 2 / 2^seeds: 0.25 with 3 seeds, 0.0625 with 5, 0.002 with 10. Below six seeds none falls under 0.05.
    Source: Fisher 1935, "The Design of Experiments", section 21.
    """
    if not differences.any():
        return 1.0
    if len(differences) == 1:  # scipy asks for two
        return 1.0
    from scipy.stats import permutation_test

    def mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(values.mean(axis=axis))

    found = permutation_test(
        (differences.astype(np.float64),),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**16,
        batch=2**14,
        alternative="two-sided",
        rng=0,
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of one family, in their order, each adjusted so that the chance of any false alarm stays bounded.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted


def _superiority_p(difference: Interval) -> float:
    """One-sided, of a difference that is not above 0."""
    spread = (difference.value - difference.low) / QUANTILE
    if spread <= 0:
        return 0.0 if difference.value > 0 else 1.0
    return NormalDist().cdf(-difference.value / spread)
