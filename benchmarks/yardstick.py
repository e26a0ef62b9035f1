"""How often a candidate is let onto the shortlist rightly and wrongly, by what it is judged against, on simulated runs.

    python -m benchmarks.yardstick

Twelve candidates share test texts and what a seed does to all; each has noise of its own. Eight are equal, the
reference among them; four are worse by exactly the margin. They are judged by the best of all, by the reference, and by
the rule of `decision.quality`: the reference, or the clearest of those that are shown to be better than it. In a second
world one more candidate is truly better than the rest by three margins: then all twelve are too bad, and none should be
let on.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import LEVEL, SD_ITEM, SPREADS, margin_in_log_odds
from decision.bootstrap import Interval, crossed_difference
from decision.comparison import non_inferiority, shown_better

EQUAL, WORSE = 8, 4
SEEDS = 5
LEAD = 3
"""Of the better candidate, in margins."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000, help="simulated cells each (%(default)s)")
    parser.add_argument("--items", type=int, default=1000, help="test texts (%(default)s)")
    flags = parser.parse_args()
    print("| seeds differ | one is better | judged by | equal ones let on | worse ones let on | reference replaced |")
    print("|---|---|---|---|---|---|")
    for name, spread in SPREADS.items():
        gap = margin_in_log_odds(spread)
        for has_better in (False, True):
            shifts = np.array([0.0] * EQUAL + [gap] * WORSE + [-LEAD * gap] * has_better)
            counts: dict[str, list[NDArray[np.float64]]] = {}
            for number in range(flags.rounds):
                hits = simulate(flags.items, shifts, spread, np.random.default_rng([number, has_better]))
                for rule, found in judged(hits).items():
                    counts.setdefault(rule, []).append(found)
            for rule, shares in counts.items():
                told = " | ".join(f"{share:.1%}" for share in np.mean(shares, axis=0))
                print(f"| {name} | {'yes' if has_better else 'no'} | {rule} | {told} |", flush=True)


def simulate(
    num_items: int, shifts: NDArray[np.float64], spread: tuple[float, float], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """What each candidate got right. [candidates, seeds, items]"""
    of_seed, own = spread
    shared = LEVEL + generator.normal(0, SD_ITEM, num_items) + generator.normal(0, of_seed, (SEEDS, 1))
    noise = generator.normal(0, own, (len(shifts), SEEDS, 1))
    odds = shared[None] + shifts[:, None, None] + noise
    return generator.random(odds.shape) < 1 / (1 + np.exp(-odds))


def judged(hits: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Rule -> shares of equal and of worse candidates on the shortlist (judges left out), and whether the first
    candidate, the reference, was replaced. hits [candidates, seeds, items]"""
    num_candidates = len(hits)

    def difference(one: int, other: int) -> Interval:
        return crossed_difference(hits[one], hits[other])

    leads = [difference(index, 0) for index in range(1, num_candidates)]
    better = [index for index, is_better in enumerate(shown_better(leads), 1) if is_better]
    yardsticks = {
        "the best": int(hits.mean(axis=(1, 2)).argmax()),
        "the reference": 0,
        "the rule": max(better, key=lambda index: leads[index - 1].value, default=0),
    }
    found = {}
    for rule, judge in yardsticks.items():
        let_on = np.array([non_inferiority(difference(index, judge)) == "not worse" for index in range(num_candidates)])
        others = np.arange(num_candidates) != judge
        equal, worse = let_on[:EQUAL][others[:EQUAL]], let_on[EQUAL : EQUAL + WORSE][others[EQUAL : EQUAL + WORSE]]
        found[rule] = np.array([equal.mean(), worse.mean(), float(judge != 0)])
    return found


if __name__ == "__main__":
    main()
