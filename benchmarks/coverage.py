"""How often the intervals of a report hold the truth, and how often a verdict is wrong, on runs that are simulated.

    python -m benchmarks.coverage

Two candidates share the test texts, easy and hard ones, and what a seed does to both; each has noise of its own. The
second is worse by exactly the margin, so "not worse" and "worse" are both wrong, and should come up 2.5 % of the time.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from decision.bootstrap import crossed_difference, crossed_mean
from decision.comparison import MARGIN, non_inferiority

LEVEL = 1.6
"""Log-odds of being right on a text of middling difficulty."""
SD_ITEM = 1.5
"""Of the log-odds between texts."""
Spread = tuple[float, float]
SPREADS: dict[str, Spread] = {"little": (0.15, 0.12), "much": (0.4, 0.3)}
"""How much seeds differ: of the log-odds, between seeds for both candidates, and between seeds for each alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000, help="simulated comparisons each (%(default)s)")
    parser.add_argument("--items", type=int, default=1000, help="test texts (%(default)s)")
    flags = parser.parse_args()
    print("| seeds differ | seeds | mean covered | difference covered | called not worse | called worse |")
    print("|---|---|---|---|---|---|")
    for name, spread in SPREADS.items():
        gap, truth = margin_in_log_odds(spread), accuracy(LEVEL, spread)
        for num_seeds in (3, 5, 10):
            counts = np.zeros(4)
            for number in range(flags.rounds):
                generator = np.random.default_rng([num_seeds, number])
                first, second = simulate(num_seeds, flags.items, gap, spread, generator)
                mean = crossed_mean(first)
                difference = crossed_difference(second, first)
                verdict = non_inferiority(difference)
                covered = mean.low <= truth <= mean.high, difference.low <= -MARGIN <= difference.high
                counts += (*covered, verdict == "not worse", verdict == "worse")
            shares = " | ".join(f"{share:.1%}" for share in counts / flags.rounds)
            print(f"| {name} | {num_seeds} | {shares} |", flush=True)


def simulate(
    num_seeds: int, num_items: int, gap: float, spread: Spread, generator: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What two candidates got right. [seeds, items] each"""
    of_seed, own = spread
    shared = LEVEL + generator.normal(0, SD_ITEM, num_items) + generator.normal(0, of_seed, (num_seeds, 1))
    first, second = (
        generator.random((num_seeds, num_items))
        < 1 / (1 + np.exp(-(shared + shift + generator.normal(0, own, (num_seeds, 1)))))
        for shift in (0.0, gap)
    )
    return first, second


def accuracy(level: float, spread: Spread) -> float:
    """Over all texts and seeds there could be."""
    sd = np.sqrt(SD_ITEM**2 + spread[0] ** 2 + spread[1] ** 2)
    places, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((weights / (1 + np.exp(-(level + sd * places)))).sum() / weights.sum())


def margin_in_log_odds(spread: Spread) -> float:
    """The shift that costs exactly the margin in accuracy, by halving."""
    low, high, aim = -1.0, 0.0, accuracy(LEVEL, spread) - MARGIN
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if accuracy(LEVEL + middle, spread) < aim else (low, middle)
    return high


if __name__ == "__main__":
    main()
