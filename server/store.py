"""Adapters in memory: each one a flat block of float32 with views into it, alive for as long as a job refers to it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.errors import AdapterDamaged, AdapterNotFound
from server.heads import Head
from server.manifest import Pooling
from server.methods import Method


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """One version of one adapter, ready for the forward pass.

    rows: site name -> the method's row there. position_offset: places that its prefix takes.
    pooling: what the head reads; `native` only where the base's own pooling is none of ours.
    """

    key: str
    method: Method[Any]
    pooling: Pooling
    rows: Mapping[str, object]
    head: Head
    resident_bytes: int
    position_offset: int = 0


class Store:
    """Loaded adapters by `id@version`. Any thread may call it; a lock guards the table.

    Whoever acquires an adapter holds a reference to it: one that is unloaded meanwhile stays whole for
    the jobs that have it, and its memory goes with the last of them.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._lock = threading.Lock()
        self._adapters: dict[str, LoadedAdapter] = {}

    def load(self, folder: AdapterFolder) -> LoadedAdapter:
        """Copy a checked folder into memory on the base's device. Loading a version twice changes nothing."""
        key = key_of(folder.adapter_id, folder.version)
        with self._lock:
            if key in self._adapters:
                return self._adapters[key]
        adapter = place(folder, key, self._base)
        with self._lock:
            return self._adapters.setdefault(key, adapter)

    def acquire(self, adapter_id: str, version: str) -> LoadedAdapter:
        """The adapter of a job. Raises AdapterNotFound."""
        key = key_of(adapter_id, version)
        with self._lock:
            if key not in self._adapters:
                raise AdapterNotFound(f"adapter `{key}` is not loaded")
            return self._adapters[key]

    def unload(self, adapter_id: str, version: str) -> None:
        """Forget a version."""
        with self._lock:
            self._adapters.pop(key_of(adapter_id, version), None)

    def resident_bytes(self) -> int:
        """Bytes that loaded adapters occupy."""
        with self._lock:
            return sum(adapter.resident_bytes for adapter in self._adapters.values())


def key_of(adapter_id: str, version: str) -> str:
    """The name of one immutable version."""
    return f"{adapter_id}@{version}"


def place(folder: AdapterFolder, key: str, base: BaseModel) -> LoadedAdapter:
    """Copy the tensors of a folder into one flat block and let the method make its rows from views of it."""
    parts = [*folder.tensors.values(), *folder.head.values()]
    sizes = [part.numel() for part in parts]
    block = torch.empty(sum(sizes), device=base.device)
    views = [piece.view(part.shape).copy_(part) for piece, part in zip(torch.split(block, sizes), parts, strict=True)]
    by_site: dict[str, dict[str, Tensor]] = {}
    for (site, role), view in zip(folder.tensors, views, strict=False):
        by_site.setdefault(site, {})[role] = view
    rows = {site: folder.method.bind(folder.config, base.sites[site], roles) for site, roles in by_site.items()}
    if not bool(torch.isfinite(block).all()):
        raise AdapterDamaged("the adapter's scale makes its weights overflow float32")
    head = dict(zip(folder.head, views[len(folder.tensors) :], strict=True))
    pooling = folder.manifest.pooling
    return LoadedAdapter(
        key=key,
        method=folder.method,
        pooling=base.native_pooling if pooling == "native" else pooling,
        rows=rows,
        head=Head(folder.head_layers, {**base.native_head.tensors, **head}),
        resident_bytes=block.nbytes,
        position_offset=folder.position_offset,
    )
