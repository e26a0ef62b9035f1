"""torch's side of CUDA graphs without a card: streams, the allocator's pools, and how a recording fails.

In two ways, as torch 2.11 leaves things behind and as torch 2.13 does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

POOL = (0, 7)
INVALID = "CUDA error: operation failed due to a previous error during capture"


class PlantedStream:
    """waited_for: the streams whose work comes before what is next on this one."""

    def __init__(self) -> None:
        self.waited_for: list[PlantedStream] = []

    def wait_stream(self, other: PlantedStream) -> None:
        self.waited_for.append(other)


class PlantedCuda:
    """What torch keeps of one card. ends_first: it leaves the pool before it says that a recording is spoilt.

    routed_to: the pool that tensors are put into; references: to it. is_spoilt: whether what is recorded is worth
    nothing. is_busy: the driver lets nothing be recorded.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends_first: bool) -> None:
        self.ends_first = ends_first
        self.default = self.current = PlantedStream()
        self.side = PlantedStream()
        self.recording: PlantedStream | None = None
        self.routed_to: tuple[int, int] | None = None
        self.references = self.num_replays = 0
        self.is_spoilt = self.is_busy = False
        self.segments: list[dict[str, Any]] = []
        replaced = {
            "current_stream": lambda device=None: self.current,
            "stream": self._stream,
            "Stream": lambda device=None: self.side,
            "CUDAGraph": lambda: PlantedGraph(self),
            "graph_pool_handle": lambda: POOL,
            "synchronize": lambda device=None: None,
            "empty_cache": self._empty_cache,
            "memory_snapshot": lambda: self.segments,
            "current_device": lambda: 0,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocate_to_pool)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release_pool)

    def take(self, num_bytes: int) -> None:
        """Memory for tensors, from the driver."""
        self.segments.append({"segment_pool_id": self.routed_to or (0, 0), "total_size": num_bytes})

    def read(self) -> None:
        """Bring a number to the host, which no recording allows."""
        if self.recording is not None:
            self.is_spoilt = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def end_allocate_to_pool(self, device: int, pool: tuple[int, int]) -> None:
        if self.routed_to != pool:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.routed_to = None

    def _release_pool(self, device: int, pool: tuple[int, int]) -> None:
        self.references -= 1

    def _empty_cache(self) -> None:
        assert self.routed_to is None, "captures_underway.empty() INTERNAL ASSERT FAILED"

    @contextmanager
    def _stream(self, stream: PlantedStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


class PlantedGraph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, card: PlantedCuda) -> None:
        self._card = card

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
        assert self._card.current is not self._card.default, "CUDA graphs must be captured on a non-default stream"
        assert self._card.recording is None
        self._card.routed_to, self._card.references = pool, self._card.references + 1
        if self._card.is_busy:
            raise RuntimeError("CUDA error: operation would make the legacy stream depend on a capturing one")
        self._card.recording, self._card.is_spoilt = self._card.current, False

    def capture_end(self) -> None:
        assert self._card.recording is self._card.current, "Capture must end on the same stream it began on"
        self._card.recording = None
        if self._card.is_spoilt and not self._card.ends_first:
            raise RuntimeError(INVALID)
        self._card.end_allocate_to_pool(0, POOL)
        if self._card.is_spoilt:
            raise RuntimeError(INVALID)

    def replay(self) -> None:
        self._card.num_replays += 1
