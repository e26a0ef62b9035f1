"""Records what a pass does on the device, so that it can be done again in one call of the host's."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
        around = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(around)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    run()
        finally:  # one that raises has launched something too, which still reads what others may be given next
            around.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        result = self._capture(graph, run)
        self._graphs.append(graph)
        self._held_bytes = self._pool_bytes()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def held_bytes(self) -> int:
        return self._held_bytes

    def forget(self) -> None:
        self._graphs.clear()
        self._held_bytes = 0

    def _capture(self, graph: torch.cuda.CUDAGraph, run: Callable[[], Tensor]) -> Tensor:
        """What `torch.cuda.graph` does; but where it fails, stream and allocator are again as they were before."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # meanwhile torch frees nothing that it keeps to make room
        with torch.cuda.stream(self._stream), _no_collection():
            try:
                # other threads may load adapters meanwhile, as long as this one does nothing that cannot be recorded
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    result = run()
                except BaseException:
                    with suppress(RuntimeError):  # that the recording is spoilt; why, is what run has raised
                        graph.capture_end()
                    raise
                graph.capture_end()
            except BaseException:
                self._leave_pool()
                raise
        return result

    def _leave_pool(self) -> None:
        """Nothing more is put into the pool: torch 2.11 goes on with that after a failure (pytorch#180395)."""
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # newer versions have done so
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)

    def _pool_bytes(self) -> int:
        """What the pool has of the device: what other threads take meanwhile lies elsewhere."""
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        return sum(segment["total_size"] for segment in segments if segment["segment_pool_id"] == self._pool)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the collector of garbage: a graph or an event that it finds and destroys spoils a recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
