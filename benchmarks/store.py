"""What an adapter costs beside its forward pass: registering, loading, switching, freeing, and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.timing import resident_kib
from server import adapter_folder
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.store import Store
from training.dummy import WEIGHTS

CYCLES = 10_000
AROUND = 9
"""Loads before and with the one that is named, whose median is given."""


def measure(root: Path, names: Sequence[str], base: BaseModel) -> dict[str, float]:
    """Wall milliseconds and bytes with the adapters `names` (all of one method)."""
    began = time.perf_counter()
    store, folders = Store(base), [adapter_folder.read(root, name, base) for name in names]
    keys = [store.register(folder) for folder in folders]
    found = {"register_all_ms": (time.perf_counter() - began) * 1e3, "num_registered": float(len(names))}
    load_ms = [_timed(lambda folder=folder: _use(store, folder)) for folder in folders]  # type: ignore[misc]
    for number in (10, 100, 500, 1000):
        if number <= len(names):
            found[f"load_{number}th_ms"] = statistics.median(load_ms[number - AROUND : number])
    found["switch_ms"] = statistics.median(
        _timed(lambda folder=folder: _use(store, folder))  # type: ignore[misc]
        for folder in folders[:100]
    )
    found["free_ms"] = statistics.median(
        _timed(lambda key=key: store.unregister(key))  # type: ignore[misc]
        for key in keys[:100]
    )
    return {name: round(value, 4) for name, value in found.items()} | _cycles(folders, base)


def bytes_against_files(root: Path, names: Mapping[str, Sequence[str]], base: BaseModel) -> dict[str, float]:
    """Resident bytes of an adapter of each method, as a multiple of its file's."""
    store, found = Store(base), {}
    for method, some in names.items():
        adapter = store.load(adapter_folder.read(root, some[0], base))
        found[method] = round(adapter.resident_bytes / (root / some[0] / WEIGHTS).stat().st_size, 3)
    return found


def _cycles(folders: Sequence[AdapterFolder], base: BaseModel) -> dict[str, float]:
    """Load and evict many times with room for one adapter; how far memory grew after the first tenth."""
    store = Store(base, device_bytes=max(folder.weights.num_bytes for folder in folders))
    few = [*folders[:3]]
    for folder in few:
        store.register(folder)
    for number in range(CYCLES // 10):
        _use(store, few[number % 3])
    before = resident_kib()
    for number in range(CYCLES):
        _use(store, few[number % 3])
    return {"cycles": CYCLES, "cycles_grew_kib": resident_kib() - before}


def _use(store: Store, folder: AdapterFolder) -> None:
    store.release(store.acquire(folder.adapter_id, folder.version).result())


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3
