"""What rows of evidence say: every candidate in a cell (a task with a number of training rows), and across tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from decision.bootstrap import RESAMPLES
from decision.measured_cell import measure
from decision.rows import QualityRow, RowsError, TrialRow
from server.errors import DataError
from training.across import Across, stand_across
from training.grouping import grouped
from training.standings import Cell, Place, stand

Row = QualityRow | TrialRow


@dataclass(frozen=True, slots=True)
class Summary:
    num_quality_rows: int
    num_trial_rows: int
    cells: tuple[Cell, ...]
    across: tuple[Across, ...]
    missing: tuple[str, ...]
    """What other cells have and one has not, a sentence each."""
    diverged: tuple[str, ...]
    """Final runs without answers of their own, a sentence each."""
    commits: tuple[str, ...]
    machines: tuple[str, ...]
    versions: tuple[str, ...]
    commands: tuple[str, ...]


def summarise(rows: Iterable[Row], reference: str | None = None, resamples: int = RESAMPLES) -> Summary:
    """Put rows in cells and compare.

    reference: the candidate that the others are compared with; None takes the best adapter of each cell, whose luck
    makes the others look worse than they are. Raises DataError.
    """
    kept = _unique(rows)
    runs = [row for row in kept if isinstance(row, QualityRow)]
    trials = [row for row in kept if isinstance(row, TrialRow)]
    if not runs:
        raise DataError("there is no row of kind `quality` that is asked for; run the grid first")
    candidates = sorted({row.candidate for row in runs})
    if reference is not None and reference not in candidates:
        raise DataError(f"the reference `{reference}` is in no row; there are {', '.join(candidates)}")
    tried = grouped(trials, lambda row: (row.task, row.train_rows))
    places = grouped(runs, lambda row: (row.task, row.train_rows))
    try:
        measured = {place: measure(found) for place, found in places.items()}
    except RowsError as error:
        raise DataError(str(error)) from error
    cells = tuple(stand(place, found, tried.get(place, []), reference) for place, found in sorted(measured.items()))
    sizes = sorted({train_rows for _, train_rows in places})
    sources = [row.provenance for row in kept]
    return Summary(
        num_quality_rows=len(runs),
        num_trial_rows=len(trials),
        cells=cells,
        across=tuple(
            stand_across(
                size, {task: found for (task, own), found in measured.items() if own == size}, reference, resamples
            )
            for size in sizes
        ),
        missing=tuple(_missing(places)),
        diverged=tuple(
            f"`{run.task}` with {run.train_rows:,} rows: `{run.candidate}`, seed {run.seed}"
            for run in runs
            if run.failure
        ),
        commits=tuple(sorted({source.commit for source in sources})),
        machines=tuple(sorted({source.machine for source in sources})),
        versions=tuple(
            sorted({", ".join(f"{k} {v}" for k, v in sorted(source.versions.items())) for source in sources})
        ),
        commands=tuple(sorted({source.command for source in sources})),
    )


def _unique(rows: Iterable[Row]) -> list[Row]:
    """Each row once, in an order of their own. Raises DataError where one run has two results."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        rate = row.recipe if isinstance(row, TrialRow) else None
        key = (row.kind, row.task, row.train_rows, row.candidate, row.seed, str(rate))
        if found.setdefault(key, row) != row:
            raise DataError(
                f"`{row.candidate}` on `{row.task}` with {row.train_rows} rows and seed {row.seed} is there twice with "
                f"different results, of plans `{found[key].plan}` and `{row.plan}`; name the file of one with --plan, "
                "or fewer files"
            )
    return [found[key] for key in sorted(found, key=str)]


def _missing(places: Mapping[Place, Sequence[QualityRow]]) -> Iterable[str]:
    """What a cell lacks of the candidates that others have, and a candidate of its cell's seeds."""
    candidates = sorted({run.candidate for runs in places.values() for run in runs})
    sizes = sorted({train_rows for _, train_rows in places})
    for task in sorted({task for task, _ in places}):
        for size in sizes:
            runs = places.get((task, size))
            if runs is None:
                yield f"`{task}` with {size:,} rows: nothing"
                continue
            seeds = {run.seed for run in runs}
            for name in candidates:
                lacking = seeds - {run.seed for run in runs if run.candidate == name}
                if lacking == seeds:
                    yield f"`{task}` with {size:,} rows: no `{name}`"
                elif lacking:
                    named = ", ".join(map(str, sorted(lacking)))
                    yield f"`{task}` with {size:,} rows: `{name}` lacks seed{'s'[: len(lacking) > 1]} {named}"
