"""Adapters in memory: each one the bytes of its file and views into them, loaded when asked for, least used gone first.

The tiers are the base's device, host memory before it where the device is not the host's own (`Settings` gives both
their bytes), and the disk behind them. Nothing here takes longer because more adapters are known or loaded.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import torch

from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.device_memory import DeviceMemory, has_failed, memory_of
from server.errors import AdaptermuxError, AdapterNotFound, AdapterRefused, EngineStopped, LoadFailed
from server.host_tier import HostTier
from server.loaded_adapter import LoadedAdapter, place
from server.residency import Resident, StoreStats, Tier, key_of
from server.weights_file import read_block

UNLIMITED = 1 << 62
NUM_LOADERS = 2


class Store:
    """Adapters by `id@version`. Any thread may call it; a lock guards the tables, and is never held while loading.

    Whoever acquires an adapter must release it; until then it stays in memory. Others wait for nothing but their own
    adapter: loads run on threads of their own, one for each adapter however many ask. When memory is full the adapter
    goes that was released longest ago; when all are in use, one of them takes no new users until it is free, so
    that every adapter has its turn.

    has_lost_device turns true when a load has found that the device does nothing more for this process.

    on_failed is called on a loader thread with a folder whose weights turned out to be damaged, and why; on_loaded with
    the seconds that a load took.
    """

    def __init__(
        self,
        base: BaseModel,
        device_bytes: int = UNLIMITED,
        host_bytes: int = 0,
        on_failed: Callable[[AdapterFolder, AdapterRefused], None] = lambda folder, error: None,
        on_loaded: Callable[[float], None] = lambda seconds: None,
        memory: DeviceMemory | None = None,
    ) -> None:
        """memory: that of the base's device, if it is known already."""
        self.memory = memory or memory_of(base.device)
        self.has_lost_device = False
        self._base, self._device_bytes, self._on_failed = base, device_bytes, on_failed
        self._on_loaded = on_loaded
        self._host = HostTier(host_bytes)
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._idle: OrderedDict[LoadedAdapter, _Entry] = OrderedDict()  # unused, released longest ago first
        self._busy: OrderedDict[LoadedAdapter, _Entry] = OrderedDict()  # in use, acquired longest ago first
        self._queue: deque[_Entry] = deque()  # wait for room
        self._draining: _Entry | None = None
        self._ready: list[tuple[Future[LoadedAdapter], LoadedAdapter]] = []  # to be told after the lock
        self._used_bytes = self._pinned_bytes = self._known_bytes = 0
        self._num_loads = self._num_evictions = self._num_hits = self._num_misses = 0
        self._loaders = ThreadPoolExecutor(NUM_LOADERS, "adaptermux-loader", initializer=self.memory.enter)
        self._closed = False

    def register(self, folder: AdapterFolder) -> str:
        """Make a version known; its weights stay on disk until it is acquired. Returns its key. Raises LoadFailed.

        One that is known already is read from this folder from now on.
        """
        key, num_bytes = key_of(folder.adapter_id, folder.version), folder.weights.num_bytes
        with self._lock:
            room = self._device_bytes - self._pinned_bytes
            if num_bytes > room:
                raise LoadFailed(
                    f"adapter `{key}` has {num_bytes} bytes, adapters may have {room}; see --adapter-bytes"
                )
            if (entry := self._entries.get(key)) is None:
                self._entries[key] = _Entry(key, folder)
                self._known_bytes += num_bytes
            elif entry.num_bytes == num_bytes:
                entry.folder = folder
        return key

    def unregister(self, key: str) -> None:
        """Forget a version: nobody can acquire it any more, and its memory goes with the last job that has it."""
        waiters: list[Future[LoadedAdapter]] = []
        with self._changing():
            entry = self._entries.pop(key, None)
            self._host.drop(key)
            if entry is not None:
                self._known_bytes -= entry.num_bytes
                waiters, entry.waiters, entry.is_forgotten = entry.waiters, [], True
                self._unpin(entry)
                if entry.state is _State.QUEUED:
                    self._queue.remove(entry)
                elif entry.adapter in self._idle:
                    self._evict(entry)
        for waiter in waiters:
            _fail(waiter, AdapterNotFound(f"adapter `{key}` was removed"))

    def retire(self, key: str) -> None:
        """Take a version out of memory as soon as nobody uses it: now, or with its last release.

        It stays known, and is loaded again as any other when it is asked for after that. A pin holds it until unpinned.
        """
        with self._changing():
            if (entry := self._entries.get(key)) is not None:
                self._host.drop(key)
                entry.is_wanted = False
                entry.is_retired = entry.state is not _State.ABSENT
                if entry.adapter in self._idle:
                    self._evict(entry)

    def acquire(self, adapter_id: str, version: str) -> Future[LoadedAdapter]:
        """The adapter, at once if it is in memory, else when it is loaded. `release` it once for every success.

        Raises AdapterNotFound. The future fails with AdapterRefused or LoadFailed; it may be cancelled.
        """
        key, future = key_of(adapter_id, version), Future[LoadedAdapter]()
        with self._changing():
            entry = self._entries.get(key)
            if entry is None:
                raise AdapterNotFound(f"adapter `{key}` is not known")
            if self._closed:
                raise EngineStopped("the store is closed")
            if entry.adapter is not None and entry is not self._draining:
                self._num_hits += 1
                self._use(entry, entry.adapter, [future])
            else:
                self._num_misses += 1
                entry.waiters.append(future)
                self._enqueue(entry)
        return future

    def keep(self, key: str) -> None:
        """Let a version that was retired, and is in memory still, stay there like any other."""
        with self._changing():
            if (entry := self._entries.get(key)) is not None:
                entry.is_retired = False

    def prefetch(self, key: str) -> None:
        """Keep a known version that somebody will soon acquire, and begin to load it."""
        with self._changing():
            if (entry := self._entries.get(key)) is not None:
                entry.is_retired = False
                if entry.state is _State.ABSENT:
                    entry.is_wanted = True
                    self._enqueue(entry)

    def release(self, adapter: LoadedAdapter) -> None:
        """Give back one use of an adapter."""
        with self._changing():
            self._give_back(self._busy[adapter], adapter)

    def pin(self, key: str) -> None:
        """Load a version and keep it, whoever else wants the room.

        Raises AdapterNotFound, and LoadFailed where no room would be left for others.
        """
        with self._changing():
            if (entry := self._entries.get(key)) is None:
                raise AdapterNotFound(f"adapter `{key}` is not known")
            if entry.is_pinned:
                return
            largest = max(other.num_bytes for other in self._entries.values())
            if self._pinned_bytes + entry.num_bytes + largest > self._device_bytes:
                raise LoadFailed(f"pinning `{key}` would leave no room for others; see --adapter-bytes")
            self._pinned_bytes += entry.num_bytes
            entry.is_pinned = True
            if entry is self._draining:
                self._stop_draining()
            if entry.adapter is not None:
                self._use(entry, entry.adapter, [], pins=1)
            else:
                self._enqueue(entry)

    def unpin(self, key: str) -> None:
        """Let a version go again when its room is needed."""
        with self._changing():
            if (entry := self._entries.get(key)) is not None:
                self._unpin(entry)

    def load(self, folder: AdapterFolder) -> LoadedAdapter:
        """Register, load and wait for a version; it stays in memory until the room is needed."""
        self.register(folder)
        adapter = self.acquire(folder.adapter_id, folder.version).result()
        self.release(adapter)
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
                num_fitting=self._device_bytes * len(self._entries) // max(1, self._known_bytes),
                resident_bytes=self._used_bytes,
                host_bytes=self._host.used_bytes,
                num_loads=self._num_loads,
                num_evictions=self._num_evictions,
                num_hits=self._num_hits,
                num_misses=self._num_misses,
            )

    def residents(self) -> list[Resident]:
        """Every version in memory, on the device before those in host memory only, the last used first."""
        with self._lock:
            on_device = [*reversed(self._busy.values()), *reversed(self._idle.values())]
            held = {entry.key for entry in on_device}
            in_host = [self._entries[key] for key in self._host.kept() if key in self._entries and key not in held]
            return [entry.resident("device") for entry in on_device] + [entry.resident("host") for entry in in_host]

    def tiers(self, keys: Sequence[str]) -> dict[str, Tier]:
        """Which of these versions are in memory, and where; the others would be loaded from their files."""
        with self._lock:
            known = [self._entries[key] for key in keys if key in self._entries]
            held = [entry for entry in known if entry.adapter is not None or entry.key in self._host]
            return {entry.key: "host" if entry.adapter is None else "device" for entry in held}

    def close(self) -> None:
        """Load nothing more; whoever waits for an adapter is told."""
        with self._lock:
            self._closed = True
            waiters = [waiter for entry in self._entries.values() for waiter in self._take_unserved(entry)]
            self._queue.clear()
        for waiter in waiters:
            _fail(waiter, EngineStopped("the server stops"))
        self._loaders.shutdown()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock for a change, start what it made room for, and tell those who wait once the lock is free."""
        with self._lock:
            try:
                yield
                self._start_loads()
            finally:
                ready, self._ready = self._ready, []
        for future, adapter in ready:
            future.set_result(adapter)

    def _take_unserved(self, entry: _Entry) -> list[Future[LoadedAdapter]]:
        """Those who wait for an adapter that is not being loaded right now."""
        if entry.state is _State.LOADING:
            return []
        if entry.state is _State.QUEUED:
            entry.state = _State.ABSENT
        waiters, entry.waiters = entry.waiters, []
        return waiters

    def _enqueue(self, entry: _Entry) -> None:
        if entry.state is _State.ABSENT:
            entry.state = _State.QUEUED
            self._queue.append(entry)

    def _use(self, entry: _Entry, adapter: LoadedAdapter, waiters: list[Future[LoadedAdapter]], pins: int = 0) -> None:
        """Give an adapter that is in memory to those who wait and still want it."""
        users = [waiter for waiter in waiters if waiter.set_running_or_notify_cancel()]
        if users or pins:
            entry.num_users += len(users) + pins
            self._idle.pop(adapter, None)
            self._busy[adapter] = entry
        self._ready += [(waiter, adapter) for waiter in users]

    def _give_back(self, entry: _Entry, adapter: LoadedAdapter) -> None:
        entry.num_users -= 1
        if entry.num_users == 0:
            del self._busy[adapter]
            self._idle[adapter] = entry
            if entry.is_forgotten or entry.is_retired or entry is self._draining:
                self._evict(entry)

    def _unpin(self, entry: _Entry) -> None:
        if entry.is_pinned:
            self._pinned_bytes -= entry.num_bytes
            entry.is_pinned = False
            if entry.adapter is not None:
                self._give_back(entry, entry.adapter)

    def _evict(self, entry: _Entry) -> None:
        """Take an unused adapter out of memory, and queue it again if somebody has asked for it meanwhile."""
        assert entry.adapter is not None, "only what is in memory can leave it; this is a bug"
        del self._idle[entry.adapter]
        if entry.is_retired or entry.is_forgotten:
            self._host.drop(entry.key)  # where it was put if it was being loaded meanwhile
        entry.adapter, entry.state, entry.is_retired = None, _State.ABSENT, False
        self._used_bytes -= entry.num_bytes
        self._num_evictions += 1
        if entry is self._draining:
            self._draining = None
        if entry.waiters:
            self._enqueue(entry)

    def _stop_draining(self) -> None:
        """The adapter that was to leave may stay: it takes users again."""
        entry, self._draining = self._draining, None
        if entry is not None and entry.adapter is not None:
            waiters, entry.waiters = entry.waiters, []
            self._use(entry, entry.adapter, waiters)

    def _start_loads(self) -> None:
        """Hand what there is room for to the loaders, in the order it was asked for."""
        while self._queue and not self._closed:
            entry = self._queue[0]
            entry.waiters = [waiter for waiter in entry.waiters if not waiter.cancelled()]
            if not (entry.waiters or entry.is_wanted or entry.is_pinned):
                self._queue.popleft()
                entry.state, entry.is_retired = _State.ABSENT, False
            elif self._make_room(entry.num_bytes):
                self._queue.popleft()
                entry.state = _State.LOADING
                self._used_bytes += entry.num_bytes
                self._loaders.submit(self._load, entry)
            else:
                return
        self._stop_draining()  # nobody waits for its room any more

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
        began = time.perf_counter()
        try:
            adapter = self._read(entry)
        except AdapterRefused as error:
            failure = error
        except OSError as error:  # its text would name the path
            failure = LoadFailed(f"adapter `{entry.key}` could not be loaded: {error.strerror or type(error).__name__}")
        except BaseException as error:  # out of memory, a device that fails: whoever waits must hear of it
            if isinstance(error, torch.OutOfMemoryError) and self._give_way(entry):
                return
            self.has_lost_device |= has_failed(self.memory, error)
            failure = LoadFailed(f"adapter `{entry.key}` could not be loaded: {type(error).__name__}: {error}")
        with self._changing():
            waiters, entry.waiters, entry.is_wanted = entry.waiters, [], False
            if adapter is None:
                entry.state, entry.is_retired = _State.ABSENT, False
                self._used_bytes -= entry.num_bytes
            else:
                self._num_loads += 1
                entry.adapter, entry.state = adapter, _State.RESIDENT
                self._idle[adapter] = entry
                self._use(entry, adapter, waiters, pins=int(entry.is_pinned))
                if (entry.is_forgotten or entry.is_retired) and entry.num_users == 0:
                    self._evict(entry)
        if adapter is not None:
            self._on_loaded(time.perf_counter() - began)
        if failure is not None:
            for waiter in waiters:
                _fail(waiter, failure)
            if isinstance(failure, AdapterRefused):
                self._on_failed(entry.folder, failure)

    def _read(self, entry: _Entry) -> LoadedAdapter:
        block = self._host.get(entry.key)
        if block is None:
            block = read_block(entry.folder.weights, entry.folder.manifest.weights_sha256)
            self._host.put(entry.key, block)
        return place(entry.folder, entry.key, self.memory.bring(block), self._base)

    def _give_way(self, entry: _Entry) -> bool:
        """The device had less room than its budget says: let others leave, if nobody uses them, and load this one then.

        Room that others have left between them may be too small for it, or something else may run on the same GPU.
        """
        with self._changing():
            given = 0
            while self._idle and given < entry.num_bytes and not self._closed:
                first = next(iter(self._idle.values()))
                given += first.num_bytes
                self._evict(first)
            if given:
                self._used_bytes -= entry.num_bytes
                entry.state = _State.QUEUED
                self._queue.appendleft(entry)
        return given > 0


class _State(Enum):
    ABSENT = "absent"
    QUEUED = "queued"
    LOADING = "loading"
    RESIDENT = "resident"


@dataclass(slots=True, eq=False)
class _Entry:
    """A known version. Guarded by the store's lock. is_wanted: load it though nobody waits."""

    key: str
    folder: AdapterFolder
    state: _State = _State.ABSENT
    adapter: LoadedAdapter | None = None
    num_users: int = 0
    waiters: list[Future[LoadedAdapter]] = field(default_factory=list)
    is_pinned: bool = False
    is_wanted: bool = False
    is_forgotten: bool = False
    is_retired: bool = False

    @property
    def num_bytes(self) -> int:
        return self.folder.weights.num_bytes

    def resident(self, tier: Tier) -> Resident:
        folder, num_users = self.folder, max(0, self.num_users - self.is_pinned)  # a pin counts as a user here
        return Resident(
            folder.adapter_id, folder.version, folder.method.name, self.num_bytes, tier, self.is_pinned, num_users
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
