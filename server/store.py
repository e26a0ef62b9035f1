"""Adapters in memory: each one the bytes of its file and views into them, loaded when asked for, least used gone first.

The tiers are the base's device, host memory before it where the device is not the host's own (`Settings` gives both
their bytes), and the disk behind them. Nothing here takes longer because more adapters are known or loaded.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.errors import AdaptermuxError, AdapterNotFound, AdapterRefused, EngineStopped, LoadFailed
from server.heads import Head
from server.manifest import Pooling
from server.methods import Method
from server.methods.base import widened
from server.weights_file import read_block

UNLIMITED = 1 << 62
NUM_LOADERS = 2


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """One version of one adapter, ready for the forward pass.

    rows: site name -> the method's row there, views of the file's bytes on the base's device. position_offset: places
    that its prefix takes. pooling: what the head reads; `native` only where the base's own pooling is none of ours.
    """

    key: str
    method: Method[Any]
    pooling: Pooling
    rows: Mapping[str, object]
    head: Head
    resident_bytes: int
    position_offset: int = 0
    is_half: bool = False

    def row(self, site: str) -> Any:
        """The method's row at a site in float32, or None."""
        row = self.rows.get(site)
        return widened(row) if self.is_half and row is not None else row


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Where adapters are, and what has happened since the start. Bytes: adapters in the tier, as in their files."""

    num_known: int
    num_resident: int
    resident_bytes: int
    host_bytes: int
    num_loads: int
    num_evictions: int
    num_misses: int


class Store:
    """Adapters by `id@version`. Any thread may call it; a lock guards the tables, and is never held while loading.

    Whoever acquires an adapter must release it; until then it stays in memory. Others wait for nothing but their own
    adapter: loads run on threads of their own, one for each adapter however many ask. When memory is full the adapter
    goes that was released longest ago; when all are in use, one of them takes no new users until it is free, so
    that every adapter has its turn.

    on_failed is called on a loader thread with the key of an adapter whose files turn out to be damaged.
    """

    def __init__(
        self,
        base: BaseModel,
        device_bytes: int = UNLIMITED,
        host_bytes: int = 0,
        on_failed: Callable[[AdapterFolder, AdapterRefused], None] = lambda folder, error: None,
    ) -> None:
        self._base, self._device_bytes, self._on_failed = base, device_bytes, on_failed
        self._host = _HostTier(host_bytes)
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._idle: OrderedDict[str, _Entry] = OrderedDict()  # in memory and unused, released longest ago first
        self._busy: OrderedDict[str, _Entry] = OrderedDict()  # in memory and used, acquired longest ago first
        self._queue: deque[_Entry] = deque()  # wait for room
        self._draining: _Entry | None = None
        self._used_bytes = self._pinned_bytes = self._largest_bytes = 0
        self._num_loads = self._num_evictions = self._num_misses = 0
        self._loaders = ThreadPoolExecutor(NUM_LOADERS, thread_name_prefix="adaptermux-loader")
        self._closed = False

    def register(self, folder: AdapterFolder) -> str:
        """Make a version known; its weights stay on disk until it is acquired. Returns its key. Raises LoadFailed."""
        key, num_bytes = key_of(folder.adapter_id, folder.version), folder.weights.num_bytes
        with self._lock:
            room = self._device_bytes - self._pinned_bytes
            if num_bytes > room:
                raise LoadFailed(
                    f"adapter `{key}` has {num_bytes} bytes, adapters may have {room}; see --adapter-bytes"
                )
            self._entries.setdefault(key, _Entry(key, folder))
            self._largest_bytes = max(self._largest_bytes, num_bytes)
        return key

    def unregister(self, key: str) -> None:
        """Forget a version: nobody can acquire it any more, and its memory goes with the last job that has it."""
        self.unpin(key)
        with self._lock:
            entry = self._entries.pop(key, None)
            self._host.drop(key)
            if entry is None:
                return
            waiters, entry.waiters, entry.is_forgotten = entry.waiters, [], True
            if entry.state is _State.QUEUED:
                self._queue.remove(entry)
            elif key in self._idle:
                self._evict(entry)
            self._start_loads()
        for waiter in waiters:
            _fail(waiter, AdapterNotFound(f"adapter `{key}` was removed"))

    def acquire(self, adapter_id: str, version: str) -> Future[LoadedAdapter]:
        """The adapter, at once if it is in memory, else when it is loaded. `release` it once for every success.

        Raises AdapterNotFound. The future fails with AdapterRefused or LoadFailed.
        """
        key, future = key_of(adapter_id, version), Future[LoadedAdapter]()
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                raise AdapterNotFound(f"adapter `{key}` is not known")
            if self._closed:
                raise EngineStopped("the store is closed")
            adapter = entry.adapter if entry is not self._draining else None
            if adapter is not None:
                self._use(entry, 1)
            else:
                self._num_misses += 1
                entry.waiters.append(future)
                self._enqueue(entry)
            self._start_loads()
        if adapter is not None:
            future.set_result(adapter)
        return future

    def prefetch(self, key: str) -> None:
        """Begin to load a known version that somebody will soon acquire."""
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                self._enqueue(entry)
            self._start_loads()

    def release(self, key: str) -> None:
        """Give back one use of an adapter."""
        with self._lock:
            self._give_back(self._busy[key])
            self._start_loads()

    def pin(self, key: str) -> None:
        """Load a known version and keep it, whoever else wants the room. Raises LoadFailed where none would be left."""
        with self._lock:
            entry = self._entries[key]
            if entry.is_pinned:
                return
            if self._pinned_bytes + entry.num_bytes + self._largest_bytes > self._device_bytes:
                raise LoadFailed(f"pinning `{key}` would leave no room for others; see --adapter-bytes")
            self._pinned_bytes += entry.num_bytes
            entry.is_pinned = True
            if entry.state is _State.RESIDENT:
                self._use(entry, 1)
            else:
                self._enqueue(entry)
            self._start_loads()

    def unpin(self, key: str) -> None:
        """Let a version go again when its room is needed."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.is_pinned:
                return
            self._pinned_bytes -= entry.num_bytes
            entry.is_pinned = False
            if entry.state is _State.RESIDENT:
                self._give_back(entry)
            self._start_loads()

    def load(self, folder: AdapterFolder) -> LoadedAdapter:
        """Register, load and wait for a version; it stays in memory until the room is needed."""
        key = self.register(folder)
        adapter = self.acquire(folder.adapter_id, folder.version).result()
        self.release(key)
        return adapter

    def has_room(self, num_bytes: int) -> bool:
        """Whether that much can be loaded without evicting anything."""
        with self._lock:
            return self._used_bytes + num_bytes <= self._device_bytes

    def stats(self) -> StoreStats:
        with self._lock:
            return StoreStats(
                num_known=len(self._entries),
                num_resident=len(self._idle) + len(self._busy),
                resident_bytes=self._used_bytes,
                host_bytes=self._host.used_bytes,
                num_loads=self._num_loads,
                num_evictions=self._num_evictions,
                num_misses=self._num_misses,
            )

    def close(self) -> None:
        """Load nothing more; whoever waits for an adapter is told."""
        with self._lock:
            self._closed = True
            waiters = [waiter for entry in self._queue for waiter in entry.waiters]
            for entry in self._queue:
                entry.state, entry.waiters = _State.ABSENT, []
            self._queue.clear()
        for waiter in waiters:
            _fail(waiter, EngineStopped("the server stops"))
        self._loaders.shutdown()

    def _enqueue(self, entry: _Entry) -> None:
        if entry.state is _State.ABSENT:
            entry.state = _State.QUEUED
            self._queue.append(entry)

    def _use(self, entry: _Entry, times: int) -> None:
        entry.num_users += times
        self._idle.pop(entry.key, None)
        self._busy[entry.key] = entry

    def _give_back(self, entry: _Entry) -> None:
        entry.num_users -= 1
        if entry.num_users == 0:
            del self._busy[entry.key]
            self._idle[entry.key] = entry
            if entry.is_forgotten or entry is self._draining:
                self._evict(entry)

    def _evict(self, entry: _Entry) -> None:
        """Take an unused adapter out of memory, and queue it again if somebody has asked for it meanwhile."""
        del self._idle[entry.key]
        entry.adapter, entry.state = None, _State.ABSENT
        self._used_bytes -= entry.num_bytes
        self._num_evictions += 1
        if entry is self._draining:
            self._draining = None
        if entry.waiters:
            self._enqueue(entry)

    def _start_loads(self) -> None:
        """Hand what there is room for to the loaders, in the order it was asked for."""
        while self._queue and not self._closed and self._make_room(self._queue[0].num_bytes):
            entry = self._queue.popleft()
            entry.state = _State.LOADING
            self._used_bytes += entry.num_bytes
            self._loaders.submit(self._load, entry)

    def _make_room(self, num_bytes: int) -> bool:
        """Evict until there is room; where all is in use, choose one that takes no new users until it is free."""
        while self._used_bytes + num_bytes > self._device_bytes:
            if not self._idle:
                if self._draining is None:
                    self._draining = next((entry for entry in self._busy.values() if not entry.is_pinned), None)
                return False
            self._evict(next(iter(self._idle.values())))
        return True

    def _load(self, entry: _Entry) -> None:
        """On a loader thread: read one adapter, then answer all who wait for it."""
        adapter: LoadedAdapter | None = None
        failure: AdaptermuxError | None = None
        try:
            block = self._host.get(entry.key)
            if block is None:
                block = read_block(entry.folder.weights, entry.folder.manifest.weights_sha256)
                self._host.put(entry.key, block)
            adapter = place(entry.folder, entry.key, block, self._base)
        except AdapterRefused as error:
            failure = error
            self._on_failed(entry.folder, error)
        except Exception as error:  # out of memory, a device that fails: whoever waits must hear of it
            failure = LoadFailed(f"adapter `{entry.key}` could not be loaded: {type(error).__name__}: {error}")
        with self._lock:
            waiters, entry.waiters = [w for w in entry.waiters if w.set_running_or_notify_cancel()], []
            if adapter is None:
                entry.state = _State.ABSENT
                self._used_bytes -= entry.num_bytes
            else:
                self._num_loads += 1
                entry.adapter, entry.state = adapter, _State.RESIDENT
                self._idle[entry.key] = entry
                if waiters or entry.is_pinned:
                    self._use(entry, len(waiters) + entry.is_pinned)
                elif entry.is_forgotten:
                    self._evict(entry)
            self._start_loads()
        for waiter in waiters:
            if adapter is not None:
                waiter.set_result(adapter)
            else:
                waiter.set_exception(failure)


class _State(Enum):
    ABSENT = "absent"
    QUEUED = "queued"
    LOADING = "loading"
    RESIDENT = "resident"


@dataclass(slots=True, eq=False)
class _Entry:
    """A known version. Guarded by the store's lock."""

    key: str
    folder: AdapterFolder
    state: _State = _State.ABSENT
    adapter: LoadedAdapter | None = None
    num_users: int = 0
    waiters: list[Future[LoadedAdapter]] = field(default_factory=list)
    is_pinned: bool = False
    is_forgotten: bool = False

    @property
    def num_bytes(self) -> int:
        return self.folder.weights.num_bytes


class _HostTier:
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

    def drop(self, key: str) -> None:
        with self._lock:
            if (block := self._blocks.pop(key, None)) is not None:
                self.used_bytes -= block.nbytes


def key_of(adapter_id: str, version: str) -> str:
    """The name of one immutable version."""
    return f"{adapter_id}@{version}"


def place(folder: AdapterFolder, key: str, block: Tensor, base: BaseModel) -> LoadedAdapter:
    """Bring a file's bytes to the base's device and let the method make its rows from views of them."""
    block = block.to(base.device)
    by_site: dict[str, dict[str, Tensor]] = {}
    for (site, role), spec in folder.tensors.items():
        by_site.setdefault(site, {})[role] = spec.view(block)
    head = {name: spec.view(block).float() for name, spec in folder.head.items()}
    pooling = folder.manifest.pooling
    return LoadedAdapter(
        key=key,
        method=folder.method,
        pooling=base.native_pooling if pooling == "native" else pooling,
        rows={site: folder.method.bind(folder.config, base.sites[site], roles) for site, roles in by_site.items()},
        head=Head(folder.head_layers, {**base.native_head.tensors, **head}),
        resident_bytes=block.nbytes,
        position_offset=folder.position_offset,
        is_half=any(spec.dtype != "F32" for spec in folder.tensors.values()),
    )


def quarter_of_memory(device: torch.device) -> int:
    """A quarter of a device's memory in bytes; of what the container may have, where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1]) // 4
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total // 4


def _fail(waiter: Future[LoadedAdapter], error: AdaptermuxError) -> None:
    if waiter.set_running_or_notify_cancel():
        waiter.set_exception(error)
