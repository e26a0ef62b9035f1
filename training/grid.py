"""Run a comparison cell by cell: what is finished is kept, what is missing is run."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from decision.rows import RowsError, TrainedRow, Writer, read_trained
from server.errors import AdaptermuxError, DataError
from training.grid_plan import Cell, GridPlan, Group, groups
from training.grouping import grouped
from training.workers import MAX_ATTEMPTS, Workers

DIED = "its process died again and again; is there enough memory?"


@dataclass(slots=True)
class Outcome:
    """What a call of `run_grid` did.

    num_found: cells of the plan that were there; num_left: that could have been run next; diverged: final runs that
    were run, and have no answers of their own; failures: cells that could not be run, and why.
    """

    num_found: int = 0
    num_run: int = 0
    num_left: int = 0
    diverged: list[Cell] = field(default_factory=list)
    failures: list[tuple[Cell, str]] = field(default_factory=list)


def finished(results: Path) -> dict[str, TrainedRow]:
    """The rows of a results file by cell; none if there is no file. Raises DataError."""
    if not results.exists():
        return {}
    try:
        return {row.cell: row for row in read_trained(results)}
    except RowsError as error:
        raise DataError(str(error)) from error


def expected(plan: GridPlan, data_root: Path | None, rows: Mapping[str, TrainedRow]) -> list[Cell]:
    """Every cell of a plan.

    Until a candidate's trials are done, its final runs stand here with the first trial's settings: they cost the same.
    """
    found = []
    for group in groups(plan, data_root):
        trials = group.trials()
        is_tuned = all(cell.key in rows for cell in trials)
        found += [*trials, *group.finals(group.choose(rows) if is_tuned else group.candidate.trials()[0])]
    return found


def rows_of(plan: GridPlan, rows: Iterable[TrainedRow]) -> list[TrainedRow]:
    """The rows that a plan asks for as it stands now, by its own names, whichever plan they were run for.

    A file may hold others too: of other plans, and of this one before it was changed.
    """
    by_cell = grouped(rows, lambda row: row.cell)
    first = {key: found[0] for key, found in by_cell.items()}
    asked: list[Cell] = []
    for group in groups(plan, None):
        trials = group.trials()
        asked += trials
        if all(cell.key in first for cell in trials):
            asked += group.finals(group.choose(first))
    names = ((cell, {"plan": plan.name, "candidate": cell.candidate}) for cell in asked)
    return [row.model_copy(update=own) for cell, own in names for row in by_cell.get(cell.key, ())]


def run_grid(
    plan: GridPlan,
    data_root: Path | None,
    results: Path,
    workers: Workers,
    command: str,
    stop_after_s: float | None = None,
    on_row: Callable[[Cell, TrainedRow], None] = lambda cell, row: None,
) -> Outcome:
    """Run what is missing and append it to `results`, every row as soon as it is there. Raises DataError.

    stop_after_s: begin nothing after that time. on_row: told of every cell that is finished. However it ends, the
    workers are closed.
    """
    try:
        with Writer(results) as writer:
            rows = finished(results)
            run = _Run(plan, data_root, rows, workers, command, stop_after_s)
            run.outcome.num_found = sum(cell.key in rows for cell in expected(plan, data_root, rows))
            for cell, row in run.rows_as_they_come():
                writer.write(row)
                on_row(cell, row)
    except RowsError as error:
        workers.abort()
        raise DataError(str(error)) from error
    except BaseException:
        workers.abort()
        raise
    workers.close()
    return run.outcome


class _Run:
    """Cells that wait, cells that run, and what is known so far. Owned by the thread that calls it."""

    def __init__(
        self,
        plan: GridPlan,
        data_root: Path | None,
        rows: Mapping[str, TrainedRow],
        workers: Workers,
        command: str,
        stop_after_s: float | None,
    ) -> None:
        self.outcome = Outcome()
        self._rows, self._workers, self._command = dict(rows), workers, command
        self._end = None if stop_after_s is None else time.monotonic() + stop_after_s
        self._waiting: deque[tuple[Group, Cell]] = deque()
        self._running: dict[Future[TrainedRow], tuple[Group, Cell]] = {}
        self._attempts: Counter[str] = Counter()
        for group in groups(plan, data_root):
            self._waiting.extend((group, cell) for cell in self._next(group))

    def rows_as_they_come(self) -> Iterator[tuple[Cell, TrainedRow]]:
        while self._fill():
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            pairs = [(future, *self._running.pop(future)) for future in done]
            yield from self._collect(pairs)
        self.outcome.num_left = len(self._waiting)

    def _fill(self) -> bool:
        """Give the workers what waits, in order; whether anything runs."""
        is_over = self._end is not None and time.monotonic() > self._end
        while self._waiting and len(self._running) < self._workers.width and not is_over:
            group, cell = self._waiting.popleft()
            self._attempts[cell.key] += 1
            self._running[self._workers.submit(cell, self._command)] = (group, cell)
        return bool(self._running)

    def _collect(self, pairs: Sequence[tuple[Future[TrainedRow], Group, Cell]]) -> Iterator[tuple[Cell, TrainedRow]]:
        broken: list[tuple[Group, Cell]] = []
        bugs: list[BaseException] = []
        for future, group, cell in pairs:
            error = future.exception()
            if error is not None:
                if isinstance(error, BrokenExecutor):
                    broken.append((group, cell))
                elif isinstance(error, AdaptermuxError):
                    self.outcome.failures.append((cell, str(error)))
                elif self._workers.has_given_up(error):
                    self.outcome.failures.append((cell, DIED))
                else:
                    bugs.append(error)  # raised when what is finished has been kept
                continue
            self._rows[cell.key] = row = future.result()
            self.outcome.num_run += 1
            if cell.is_final and row.failure is not None:
                self.outcome.diverged.append(cell)
            if not cell.is_final:
                # a group's final runs come before the next group, so that what is finished is whole
                self._waiting.extendleft((group, one) for one in reversed(self._after_trial(group)))
            yield cell, row
        if bugs:
            raise bugs[0]
        if broken:
            self._begin_again(broken)

    def _next(self, group: Group) -> list[Cell]:
        """What of a group can be run now and is not there yet."""
        trials = group.trials()
        left = [cell for cell in trials if cell.key not in self._rows]
        if left:
            return left
        return [cell for cell in group.finals(group.choose(self._rows)) if cell.key not in self._rows]

    def _after_trial(self, group: Group) -> list[Cell]:
        return [] if any(cell.key not in self._rows for cell in group.trials()) else self._next(group)

    def _begin_again(self, broken: list[tuple[Group, Cell]]) -> None:
        """A process died, and all that ran with it: it may have been too large for the memory."""
        broken += self._running.values()
        self._running.clear()
        self._workers.restart()
        for group, cell in reversed(broken):
            if self._attempts[cell.key] < MAX_ATTEMPTS:
                self._waiting.appendleft((group, cell))
            else:
                self.outcome.failures.append((cell, DIED))
