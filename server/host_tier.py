"""Adapters that host memory keeps behind those on a device."""

from __future__ import annotations

import threading
from collections import OrderedDict

from torch import Tensor


class HostTier:
    """Files' bytes in host memory, least recently used gone first, so that a device's adapters come back quickly."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._blocks: OrderedDict[str, Tensor] = OrderedDict()
        self.used_bytes = 0

    def get(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: str, block: Tensor) -> None:
        with self._lock:
            if key in self._blocks or block.nbytes > self._max_bytes:
                return
            self._blocks[key] = block
            self.used_bytes += block.nbytes
            while self.used_bytes > self._max_bytes:
                self.used_bytes -= self._blocks.popitem(last=False)[1].nbytes

    def __contains__(self, key: str) -> bool:
        return key in self._blocks

    def kept(self) -> list[str]:
        """The keys of what is kept, the last used first."""
        with self._lock:
            return list(reversed(self._blocks))

    def drop(self, key: str) -> None:
        with self._lock:
            if (block := self._blocks.pop(key, None)) is not None:
                self.used_bytes -= block.nbytes
