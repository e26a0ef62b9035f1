"""Who runs the cells of a comparison: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import warnings
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from decision.provenance import num_cores
from decision.rows import TrainedRow
from server.errors import RecipeError
from training.grid_plan import Cell

MAX_ATTEMPTS = 3
"""At a cell whose process died; one that is run beside it dies with it."""
CELLS_PER_PROCESS = 20
"""A process that trains many models in turn grows (docs/log.md)."""


class Workers(Protocol):
    """Runs cells; `width` of them at a time."""

    width: int

    def submit(self, cell: Cell, command: str) -> Future[TrainedRow]:
        """Run a cell somewhere. The future raises `BrokenExecutor` where its process died and it may be tried again."""

    def has_given_up(self, error: BaseException) -> bool:
        """Whether a future's error says that a cell's process died each time that it was tried."""

    def restart(self) -> None:
        """Begin anew after a process died."""

    def close(self) -> None:
        """End, when nothing runs any more."""

    def abort(self) -> None:
        """End what runs, unfinished."""


class Processes:
    """Processes of this machine, which share its cores."""

    def __init__(self, width: int, cells_per_process: int = CELLS_PER_PROCESS) -> None:
        self.width = width
        self._cells_per_process = cells_per_process
        self._pool = self._start()

    def submit(self, cell: Cell, command: str) -> Future[TrainedRow]:
        return self._give(cell, command)

    def submit_alone(self, cell: Cell, command: str, folder: Path | None) -> Future[TrainedRow]:
        """Run a cell in a process that runs nothing else, so that memory and time are its own; write its adapter."""
        assert self.width == self._cells_per_process == 1, "a process takes other cells too; this is a bug"
        return self._give(cell, command, True, folder)

    def has_given_up(self, error: BaseException) -> bool:
        return False  # how often a cell is tried is up to the caller

    def restart(self) -> None:
        self.abort()
        self._pool = self._start()

    def close(self) -> None:
        self._pool.shutdown()

    def abort(self) -> None:
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _give(self, *arguments: Any) -> Future[TrainedRow]:
        try:
            return self._pool.submit(run, *arguments)
        except BrokenExecutor as error:  # a process has died since the last cell was given
            future: Future[TrainedRow] = Future()
            future.set_exception(error)
            return future

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.width,
            mp_context=multiprocessing.get_context("spawn"),  # forked threads of torch hang
            initializer=_begin,
            initargs=(max(1, num_cores() // self.width),),
            max_tasks_per_child=self._cells_per_process,
        )


class Ray:
    """A Ray cluster. Its nodes need this package, and the data under the same path or from the hub."""

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise RecipeError("--ray needs Ray: pip install 'adaptermux[ray]'") from error
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RecipeError(f"no Ray cluster answers at `{address}`: {error}") from error
        self._ray = ray
        self.width = max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        self._run = ray.remote(num_cpus=1, max_retries=MAX_ATTEMPTS - 1)(run_alone)

    def submit(self, cell: Cell, command: str) -> Future[TrainedRow]:
        future: Future[TrainedRow] = self._run.remote(cell, command).future()
        return future

    def has_given_up(self, error: BaseException) -> bool:
        """After its own retries; what ran beside the cell goes on."""
        from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

        return isinstance(error, (WorkerCrashedError, OutOfMemoryError, NodeDiedError))

    def restart(self) -> None:
        """Ray starts its workers anew by itself."""

    def close(self) -> None:
        self._ray.shutdown()

    def abort(self) -> None:
        self._ray.shutdown()


def run(cell: Cell, command: str, is_alone: bool = False, folder: Path | None = None) -> TrainedRow:
    """`training.cell.run_cell`, which imports what takes seconds where it is run."""
    from training.cell import run_cell

    return run_cell(cell, command, is_alone, folder)


def run_alone(cell: Cell, command: str) -> TrainedRow:
    """The same on one core of a machine that has other work too."""
    _limit(1)
    return run(cell, command)


def _begin(num_threads: int) -> None:
    _limit(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _limit(num_threads: int) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(min(num_threads, torch.get_num_threads()))  # fewer where OMP_NUM_THREADS says so
    # peft reads a property that transformers has renamed
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
