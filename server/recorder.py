"""Records what a pass does on the device, so that it can be done again in one call of the host's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 2
"""Passes before the one that is recorded: what a pass compiles, tunes or loads for the first time cannot be."""


class Recorder(Protocol):
    """Owned by the engine thread."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Run it, and return what does the same again: on what then lies at the same addresses, into the same result.

        Nothing of the host's is looked at again. Raises whatever cannot be recorded raises.
        """

    def held_bytes(self) -> int:
        """What recorded passes keep of the device's memory."""

    def forget(self) -> None:
        """Give their memory back; none of them runs again."""


class CudaRecorder:
    """`Recorder` by CUDA graphs, which share one pool of memory: only one of them runs at a time.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        # nothing can be recorded on the stream that all the rest uses
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # all go together: with the first one torch frees what the products of all of them work in (pytorch#193402)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._held_bytes = 0

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        free_bytes = self._free_bytes()
        around = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                run()
        around.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # meanwhile other threads may load adapters, as long as this one does nothing that cannot be recorded
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = run()
        self._graphs.append(graph)
        self._held_bytes += max(0, free_bytes - self._free_bytes())

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def held_bytes(self) -> int:
        return self._held_bytes

    def forget(self) -> None:
        self._graphs.clear()
        self._held_bytes = 0

    def _free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])
