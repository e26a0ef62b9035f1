"""One cell of evidence, a task with a number of training rows: all its runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decision.bootstrap import Interval, crossed_difference, crossed_mean
from decision.rows import QualityRow, RowsError


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """hits [runs, items]: whether each test text was answered rightly."""

    runs: tuple[QualityRow, ...]
    hits: NDArray[np.bool_]

    def places(self, candidate: str) -> dict[int, int]:
        """Where the runs of a candidate are, by seed, in order."""
        return {run.seed: index for index, run in enumerate(self.runs) if run.candidate == candidate}

    def pairs(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Where the runs of two candidates are, over the seeds that both have."""
        own, theirs = self.places(first), self.places(second)
        shared = [seed for seed in own if seed in theirs]
        return [own[seed] for seed in shared], [theirs[seed] for seed in shared]

    def accuracy(self, candidate: str) -> Interval:
        """Mean over its seeds, with an interval over other seeds and other texts."""
        chosen = list(self.places(candidate).values())
        return crossed_mean(self.hits[chosen])

    def difference(self, first: str, second: str) -> Interval | None:
        """Accuracy of the first less that of the second, paired; None where they share no seed."""
        a, b = self.pairs(first, second)
        return crossed_difference(self.hits[a], self.hits[b]) if a else None


def measure(runs: Sequence[QualityRow]) -> MeasuredCell:
    """Put the runs of one cell side by side. Raises RowsError where they saw different data or tests."""
    first = runs[0]
    for seed in sorted({run.seed for run in runs}):
        if len({run.data_sha256 for run in runs if run.seed == seed and run.data_sha256 is not None}) > 1:
            raise RowsError(
                f"the runs on `{first.task}` with {first.train_rows} rows and seed {seed} saw different data "
                "(`data_sha256` differs), so they cannot be compared; leave out the file of one of them"
            )
    if len({run.predictions.truth_sha256 for run in runs}) > 1:
        raise RowsError(
            f"the runs on `{first.task}` with {first.train_rows} rows were measured on different test texts "
            "(`truth_sha256` differs), so they cannot be compared; leave out the file of one of them"
        )
    ordered = tuple(sorted(runs, key=lambda run: (run.candidate, run.seed)))
    return MeasuredCell(ordered, np.stack([run.predictions.right() for run in ordered]))
