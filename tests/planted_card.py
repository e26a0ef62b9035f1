"""A card of few bytes, for tests of what is done with a GPU's memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from server.device_memory import CardMemory
from server.forward import Work

ILLEGAL = "CUDA error: an illegal memory access was encountered"


class PlantedCard(CardMemory):
    """A card of few bytes in this machine's memory, which counts what it holds and may fail.

    Memory is given in whole pages. A token of a pass takes token_bytes.
    """

    def __init__(self, total: int, held: int = 0, page: int = 1, token_bytes: int = 0) -> None:
        super().__init__(torch.device("cpu"))
        self.total, self.held, self.page, self.token_bytes = total, held, page, token_bytes
        self.is_lost, self.peak, self.most = False, 0, held
        self._counting = threading.RLock()

    def bring(self, block: Tensor) -> Tensor:
        num_bytes = -(-block.nbytes // self.page) * self.page
        with self._counting:
            if self.is_lost:
                raise torch.AcceleratorError(ILLEGAL)
            if num_bytes > self.free_bytes():
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.held += num_bytes
            self.most = max(self.most, self.held)
        array = super().bring(block).numpy()
        weakref.finalize(array, self._free, num_bytes)
        return torch.from_numpy(array)

    def _free(self, num_bytes: int) -> None:
        with self._counting:
            self.held -= num_bytes

    def run(self, work: Sequence[Work]) -> None:
        self.peak = self.token_bytes * sum(job.num_tokens for job, _ in work)
        if self.peak > self.free_bytes():
            raise torch.OutOfMemoryError("CUDA out of memory")

    def works(self) -> bool:
        return not self.is_lost

    def total_bytes(self) -> int:
        return self.total

    def free_bytes(self) -> int:
        return self.total - self.held

    def held_bytes(self) -> int:
        return self.held

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return self.peak
