"""How long a comparison will take, before it is run."""

from __future__ import annotations

import random

from decision.rows import FULL, MAJORITY, PROBE, WORDS, TrainedRow
from server import base_model
from server.tokenizer import Tokenizer
from training.cell import read_data, settle
from training.grid_plan import Cell

TRAIN_MS, FULL_MS, FORWARD_MS = 0.27, 0.6, 0.1
"""CPU milliseconds a token of MiniLM: a training step of an adapter, one of the whole base, a pass forward."""
SAMPLE = 200
ENOUGH_ROWS = 5


class Estimate:
    """CPU seconds of cells: a rule, corrected by what the finished ones took."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}
        self._predicted = self._measured = 0.0
        self._num_rows = 0

    def note(self, cell: Cell, row: TrainedRow) -> None:
        """Learn from a finished cell."""
        predicted = self._training_s(cell)
        self._predicted += predicted
        self._measured += row.train_cpu_s if predicted else 0
        self._num_rows += predicted > 0

    def cpu_s(self, cell: Cell) -> float:
        """Of a cell that is not finished. Raises DataError where its rows cannot be read."""
        measuring = cell.validation_rows * (cell.num_evaluations + 1)
        if cell.is_final:
            measuring += cell.test_rows or 0
        if cell.method in (MAJORITY, WORDS):
            return 0.2
        measuring_s = measuring * self._tokens_of(cell) * FORWARD_MS / 1000
        return (self._training_s(cell) + measuring_s) * self._correction()

    def _training_s(self, cell: Cell) -> float:
        if cell.method in (MAJORITY, WORDS):
            return 0.0
        plan = settle(cell, base_model.locate(cell.base))
        passes, cost = plan.epochs, TRAIN_MS
        if cell.method == PROBE:
            passes, cost = 1, FORWARD_MS
        elif cell.method == FULL:
            cost = FULL_MS
        return cell.train_rows * passes * self._tokens_of(cell) * cost / 1000

    def _correction(self) -> float:
        return self._measured / self._predicted if self._num_rows >= ENOUGH_ROWS and self._predicted else 1.0

    def _tokens_of(self, cell: Cell) -> float:
        """Mean tokens of a task's texts, and reading the data shows whether it can be read."""
        if cell.task not in self._tokens:
            folder = base_model.locate(cell.base)
            tokenizer, plan = Tokenizer(folder), settle(cell, folder)
            rows = read_data(cell).train
            rows = random.Random(0).sample(rows, min(SAMPLE, len(rows)))
            encoded = [
                tokenizer.encode(row.text, row.text_pair, plan.max_length, truncate=True, field="text") for row in rows
            ]
            self._tokens[cell.task] = sum(len(one.token_ids) for one in encoded) / len(encoded)
        return self._tokens[cell.task]
