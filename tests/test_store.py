"""The store: budgets, least used gone first, one load for all who ask, memory really given back, nobody stuck."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from server import adapter_folder
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.errors import AdapterDamaged, AdapterNotFound, AdapterRefused, EngineStopped, LoadFailed
from server.loaded_adapter import LoadedAdapter
from server.residency import key_of
from server.store import Store
from server.weights_file import WeightsFile, read_block
from tests.seeded import make_adapter, peft_configs

WAIT_S = 20
NUM_FOLDERS = 8


@pytest.fixture(scope="module")
def root(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    config = LoraConfig(task_type="SEQ_CLS", r=64, target_modules="all-linear")  # large enough to be mapped
    make_adapter(root / "a0", bert_base.folder, config, 3, seed=0)
    tensors = load_file(root / "a0" / "adapter_model.safetensors")
    for index in range(1, NUM_FOLDERS):
        shutil.copytree(root / "a0", root / f"a{index}")
        changed = {key: tensor + index for key, tensor in tensors.items()}
        save_file(changed, root / f"a{index}" / "adapter_model.safetensors")
    return root


@pytest.fixture(scope="module")
def folders(root: Path, bert_base: BaseModel) -> list[AdapterFolder]:
    return [adapter_folder.read(root, f"a{index}", bert_base) for index in range(NUM_FOLDERS)]


class Disk:
    """The real file reader behind a gate, which counts what is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reads = threading.Event(), list[str]()
        self.read: Callable[[WeightsFile, str], torch.Tensor] = read_block
        self.held: set[str] = set()
        monkeypatch.setattr("server.store.read_block", self)

    def __call__(self, weights: WeightsFile, sha256: str) -> torch.Tensor:
        name = weights.path.parent.name
        self.reads.append(name)
        if name in self.held:
            assert self.open.wait(WAIT_S)
        return self.read(weights, sha256)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def make(base: BaseModel, folders: list[AdapterFolder], room_for: float) -> Store:
    store = Store(base, device_bytes=int(folders[0].weights.num_bytes * room_for))
    for folder in folders:
        store.register(folder)
    return store


def ask(store: Store, folder: AdapterFolder) -> Future[LoadedAdapter]:
    return store.acquire(folder.adapter_id, folder.version)


def use(store: Store, folder: AdapterFolder) -> None:
    store.release(ask(store, folder).result(WAIT_S))


def use_of(store: Store, folder: AdapterFolder) -> None:
    store.register(folder)
    use(store, folder)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


def test_registering_reads_no_weights_and_memory_is_used_on_demand(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = make(bert_base, folders, NUM_FOLDERS)
    assert store.stats().resident_bytes == 0
    use(store, folders[0])
    assert disk.reads == ["a0"]
    assert store.stats().resident_bytes == folders[0].weights.num_bytes
    assert store.stats().num_misses == 1


def test_resident_bytes_are_those_of_the_file_within_a_tenth(
    bert_base: BaseModel, root: Path, folders: list[AdapterFolder]
) -> None:
    adapter = Store(bert_base).load(folders[0])
    file_bytes = (root / "a0" / "adapter_model.safetensors").stat().st_size
    assert 0.9 * file_bytes <= adapter.resident_bytes <= 1.1 * file_bytes


def test_the_one_released_longest_ago_goes_first(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = make(bert_base, folders, 3)
    for index in (0, 1, 2, 0, 3, 0, 2, 1):  # 3 takes the place of 1; then 1 that of 3
        use(store, folders[index])
        assert store.stats().num_resident <= 3
    assert disk.reads == ["a0", "a1", "a2", "a3", "a1"]
    assert store.stats().num_evictions == 2


def test_many_who_ask_at_once_cause_one_load(bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk) -> None:
    store = make(bert_base, folders, 3)
    disk.held = {"a0"}
    waiting = [ask(store, folders[0]) for _ in range(20)]
    disk.open.set()
    assert len({id(future.result(WAIT_S)) for future in waiting}) == 1
    assert disk.reads == ["a0"]
    assert store.stats().num_loads == 1


def test_a_slow_load_holds_up_nobody_else(bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk) -> None:
    store = make(bert_base, folders, NUM_FOLDERS)
    use(store, folders[1])
    disk.held = {"a0"}
    slow = ask(store, folders[0])
    assert ask(store, folders[1]).done()  # in memory: at once
    use(store, folders[2])  # not in memory: loaded meanwhile
    assert not slow.done()
    disk.open.set()
    assert slow.result(WAIT_S)


def test_an_adapter_in_use_is_never_evicted_and_the_next_waits_its_turn(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    store = make(bert_base, folders, 1)
    first = ask(store, folders[0]).result(WAIT_S)
    second, again = ask(store, folders[1]), ask(store, folders[0])
    assert not second.done()
    assert not again.done()  # takes no new users: otherwise the second might wait for ever
    store.release(first)
    assert second.result(WAIT_S).key != first.key
    store.release(second.result())
    assert again.result(WAIT_S).key == first.key
    assert again.result() is not first


def test_a_pinned_adapter_stays(bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk) -> None:
    store = make(bert_base, folders, 2)
    key = f"a0@{folders[0].version}"
    store.pin(key)
    store.pin(key)
    for folder in folders[1:] + folders[:1]:
        use(store, folder)
    assert disk.reads.count("a0") == 1
    with pytest.raises(LoadFailed, match="no room"):
        store.pin(f"a1@{folders[1].version}")
    store.unpin(key)
    for folder in folders[1:3] + folders[:1]:
        use(store, folder)
    assert disk.reads.count("a0") == 2


def test_prefetch_loads_before_anybody_asks(bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk) -> None:
    store = make(bert_base, folders, 3)
    store.prefetch(f"a0@{folders[0].version}")
    wait_for(lambda: store.stats().num_resident == 1)
    assert ask(store, folders[0]).done()
    assert disk.reads == ["a0"]
    assert store.stats().num_misses == 0


def test_the_memory_of_an_evicted_adapter_is_given_back(bert_base: BaseModel, folders: list[AdapterFolder]) -> None:
    store = make(bert_base, folders, 1)
    future = ask(store, folders[0])
    adapter = future.result(WAIT_S)
    block = weakref.ref(next(iter(adapter.rows.values())).down)  # type: ignore[attr-defined]
    store.release(adapter)
    del adapter, future
    use(store, folders[1])
    gc.collect()
    assert block() is None


def test_thousands_of_loads_leave_memory_flat(bert_base: BaseModel, folders: list[AdapterFolder]) -> None:
    """`make bench` does it ten thousand times."""
    store = make(bert_base, folders[:3], 1)
    for index in range(300):
        use(store, folders[index % 3])
    before = _resident_kib()
    for index in range(2700):
        use(store, folders[index % 3])
    assert store.stats().num_loads == 3000
    assert store.stats().num_resident == 1
    assert _resident_kib() - before < 4 * 1024


def test_damaged_weights_fail_those_who_wait_and_are_reported(bert_base: BaseModel, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "a0", tmp_path / "a0")
    folder = adapter_folder.read(tmp_path, "a0", bert_base)
    weights = tmp_path / "a0" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    reported: list[tuple[str, AdapterRefused]] = []
    store = Store(bert_base, on_failed=lambda folder, error: reported.append((folder.adapter_id, error)))
    store.register(folder)
    for _ in range(2):
        with pytest.raises(AdapterDamaged, match="sha256"):
            ask(store, folder).result(WAIT_S)
    assert reported[0][0] == "a0"
    assert store.stats().resident_bytes == 0


@pytest.mark.parametrize("fault", ["cut", "grown", "folder"])
def test_a_file_that_changed_on_disk_is_not_served(
    bert_base: BaseModel, root: Path, tmp_path: Path, fault: str
) -> None:
    shutil.copytree(root / "a0", tmp_path / "a0")
    folder = adapter_folder.read(tmp_path, "a0", bert_base)
    weights = tmp_path / "a0" / "adapter_model.safetensors"
    data = weights.read_bytes()
    if fault == "folder":
        weights.unlink()
        weights.mkdir()
    else:
        weights.write_bytes(data[:-100] if fault == "cut" else data + b"x")
    with pytest.raises(AdapterDamaged, match="adapter_model"):
        Store(bert_base).load(folder)


@pytest.mark.parametrize("gone", ["a0/adapter_model.safetensors", "a0", "."])
def test_a_file_that_is_gone_may_be_there_again(bert_base: BaseModel, root: Path, tmp_path: Path, gone: str) -> None:
    place = tmp_path / "adapters"
    shutil.copytree(root / "a0", place / "a0")
    failed: list[AdapterRefused] = []
    store = Store(bert_base, on_failed=lambda _, error: failed.append(error))
    folder = adapter_folder.read(place, "a0", bert_base)
    (place / gone).rename(tmp_path / "away")
    with pytest.raises(LoadFailed, match="No such file") as raised:
        store.load(folder)
    assert str(tmp_path) not in str(raised.value)
    (tmp_path / "away").rename(place / gone)
    store.load(folder)
    assert not failed


def test_memory_that_runs_out_while_loading_is_told_and_may_be_tried_again(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(bert_base, folders, 3)
    read = disk.read

    def fail(*_: object) -> torch.Tensor:
        raise MemoryError("no memory")

    disk.read = fail
    with pytest.raises(LoadFailed, match="no memory"):
        ask(store, folders[0]).result(WAIT_S)
    disk.read = read
    use(store, folders[0])
    assert store.stats().resident_bytes == folders[0].weights.num_bytes


def test_an_adapter_larger_than_the_budget_is_refused_when_it_is_registered(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    make(bert_base, folders[:1], 1)
    with pytest.raises(LoadFailed, match="adapter-bytes"):
        make(bert_base, folders[:1], 0.99)


def test_an_unregistered_adapter_is_unknown_and_gone(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = make(bert_base, folders, 2)
    use(store, folders[0])
    store.unregister(f"a0@{folders[0].version}")
    assert store.stats().resident_bytes == 0
    disk.held = {"a1"}
    waiting = ask(store, folders[1])
    store.unregister(f"a1@{folders[1].version}")
    disk.open.set()
    with pytest.raises(AdapterNotFound):
        waiting.result(WAIT_S)
    wait_for(lambda: store.stats().resident_bytes == 0)
    with pytest.raises(AdapterNotFound):
        ask(store, folders[0])


def test_close_answers_those_who_wait(bert_base: BaseModel, folders: list[AdapterFolder]) -> None:
    store = make(bert_base, folders, 1)
    ask(store, folders[0]).result(WAIT_S)
    waiting = ask(store, folders[1])
    store.close()
    with pytest.raises(EngineStopped):
        waiting.result(WAIT_S)
    with pytest.raises(EngineStopped):
        ask(store, folders[0])


def test_the_host_tier_saves_the_second_read(bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk) -> None:
    size = folders[0].weights.num_bytes
    store = Store(bert_base, device_bytes=size, host_bytes=2 * size)
    for folder in folders:
        store.register(folder)
    for index in (0, 1, 0, 1, 2, 0):  # at the end the host holds 1 and 2
        use(store, folders[index])
    assert disk.reads == ["a0", "a1", "a2", "a0"]
    assert store.stats().host_bytes == 2 * size


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, NUM_FOLDERS - 1), st.integers(0, 5)), max_size=60), st.integers(1, 4))
def test_whatever_happens_everybody_gets_their_adapter_and_the_budget_holds(
    bert_base: BaseModel, folders: list[AdapterFolder], events: list[tuple[int, int]], room: int
) -> None:
    """Users come, keep their adapter for some events, and leave; in the end all have been served."""
    store = make(bert_base, folders, room)
    held: list[tuple[int, int, Future[LoadedAdapter]]] = []
    for number, (index, keeps) in enumerate(events):
        held.append((number + keeps, index, ask(store, folders[index])))
        # like the engine: whoever has got their adapter finishes and leaves
        for one in [one for one in held if one[0] <= number and one[2].done()]:
            held.remove(one)
            store.release(one[2].result())
        assert store.stats().resident_bytes <= room * folders[0].weights.num_bytes
    while held:
        wait_for(lambda: any(one[2].done() for one in held))
        for one in [one for one in held if one[2].done()]:
            held.remove(one)
            assert one[2].result().key.startswith(f"a{one[1]}@")
            store.release(one[2].result())
    assert store.stats().resident_bytes <= room * folders[0].weights.num_bytes
    store.close()


def test_a_thousand_adapters_are_registered_and_the_last_loads_like_the_first(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    """Counts, not seconds: `make bench` has the times."""
    store = Store(bert_base)
    many = [replace(folders[index % NUM_FOLDERS], adapter_id=f"copy-{index}") for index in range(1000)]
    for folder in many:
        store.register(folder)
    for folder in many:
        use(store, folder)
    assert store.stats().num_resident == 1000
    assert store.stats().num_evictions == 0


def _resident_kib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize("method", ["lora-all", "head"])
def test_half_precision_adapters_keep_their_size_in_memory_and_answer_in_full(
    bert_base: BaseModel, tmp_path: Path, method: str
) -> None:
    make_adapter(tmp_path / "a", bert_base.folder, peft_configs("bert")[method], 150, seed=0)
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    adapter = Store(bert_base).load(adapter_folder.read(tmp_path, "a", bert_base))
    tensors = [part for row in adapter.rows.values() for part in (row.down, row.up)]  # type: ignore[attr-defined]
    tensors += adapter.head.tensors.values()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(storages.values()) == adapter.resident_bytes <= path.stat().st_size
    assert adapter.head.logits(torch.zeros(1, bert_base.hidden_size)).dtype == torch.float32
    for site in adapter.rows:
        assert adapter.row(site).down.dtype == torch.float32


def test_an_adapter_that_is_to_leave_may_stay_once_nobody_wants_its_room(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = make(bert_base, folders, 2)
    first, second = (ask(store, folder).result(WAIT_S) for folder in folders[:2])
    third, again = ask(store, folders[2]), ask(store, folders[0])  # the first is to leave for the third
    assert not again.done()
    store.release(second)  # whose room the third gets instead
    assert third.result(WAIT_S)
    assert again.result(WAIT_S) is first
    assert disk.reads.count("a0") == 1


def test_pinning_an_adapter_that_was_to_leave_keeps_it(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = make(bert_base, folders, 2)
    first, second = (ask(store, folder).result(WAIT_S) for folder in folders[:2])
    third, again = ask(store, folders[2]), ask(store, folders[0])
    store.pin(first.key)
    assert again.result(WAIT_S) is first
    store.release(first)
    store.release(first)
    store.release(second)
    assert third.result(WAIT_S)
    assert ask(store, folders[0]).result(WAIT_S) is first


def test_a_version_that_comes_back_while_the_old_one_is_in_use_is_another_adapter(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    store = make(bert_base, folders, 3)
    users = [ask(store, folders[0]).result(WAIT_S) for _ in range(2)]
    store.unregister(users[0].key)
    store.register(folders[0])
    new = ask(store, folders[0]).result(WAIT_S)
    assert new is not users[0]
    for user in users:
        store.release(user)
    assert store.stats().num_resident == 1
    store.release(new)
    store.unregister(new.key)
    assert store.stats().resident_bytes == 0


def test_an_adapter_that_nobody_waits_for_any_more_is_not_loaded(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = make(bert_base, folders, 1)
    first = ask(store, folders[0]).result(WAIT_S)
    assert ask(store, folders[1]).cancel()
    store.release(first)
    use(store, folders[2])
    assert disk.reads == ["a0", "a2"]


def test_a_shortage_that_passes_refuses_nothing_for_good(
    bert_base: BaseModel, folders: list[AdapterFolder], root: Path
) -> None:
    reported: list[str] = []
    store = Store(bert_base, on_failed=lambda folder, error: reported.append(folder.adapter_id))
    store.register(folders[0])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(in_use - 1, 3), limits[1]))
    try:
        failed = ask(store, folders[0]).exception(WAIT_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert isinstance(failed, LoadFailed)
    assert "Too many open files" in str(failed)
    assert str(root) not in str(failed)
    use(store, folders[0])
    assert reported == []


def test_a_listener_that_raises_keeps_nobody_waiting(bert_base: BaseModel, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "a0", tmp_path / "a0")
    folder = adapter_folder.read(tmp_path, "a0", bert_base)
    (tmp_path / "a0" / "adapter_model.safetensors").write_bytes(b"")

    def listen(*_: object) -> None:
        raise OSError("disk full")

    store = Store(bert_base, on_failed=listen)
    store.register(folder)
    for _ in range(2):
        with pytest.raises(AdapterDamaged, match="replaced"):
            ask(store, folder).result(WAIT_S)
    assert store.stats().resident_bytes == 0
    store.close()


def test_a_file_that_is_replaced_between_its_checks_is_not_served(
    bert_base: BaseModel, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "a0", tmp_path / "a0")
    path = tmp_path / "a0" / "adapter_model.safetensors"
    old = adapter_folder.read(tmp_path, "a0", bert_base)
    tensors = load_file(path)
    save_file(tensors, path, metadata={"other": "header"})
    new = adapter_folder.read(tmp_path, "a0", bert_base)
    with pytest.raises(AdapterDamaged, match="header"):
        Store(bert_base).load(replace(old, manifest=new.manifest))


def test_a_retired_version_that_nobody_uses_leaves_memory_at_once_and_can_come_back(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store, key = make(bert_base, folders, 3), f"a0@{folders[0].version}"
    store.retire(key)  # of one that is not in memory: nothing happens
    use(store, folders[0])
    assert store.stats().num_resident == 1
    store.retire(key)
    assert (store.stats().num_resident, store.stats().resident_bytes) == (0, 0)
    for _ in range(2):
        use(store, folders[0])
    assert disk.reads == ["a0", "a0"]  # loaded again once, and it stays like any other
    store.retire("nobody@000000000000")


def test_a_retired_version_in_use_leaves_with_its_last_release(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    store, key = make(bert_base, folders, 3), f"a0@{folders[0].version}"
    first, second = ask(store, folders[0]).result(WAIT_S), ask(store, folders[0]).result(WAIT_S)
    store.retire(key)
    third = ask(store, folders[0]).result(WAIT_S)
    assert first is second is third
    for adapter in (first, second):
        store.release(adapter)
        assert store.stats().num_resident == 1
    store.release(third)
    assert store.stats().num_resident == 0


def test_a_version_that_is_retired_while_it_is_loaded_serves_those_who_wait_and_leaves(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = make(bert_base, folders, 3)
    disk.held = {"a0", "a1"}
    waiting = ask(store, folders[0])
    store.prefetch(f"a1@{folders[1].version}")
    wait_for(lambda: len(disk.reads) == 2)
    for folder in folders[:2]:
        store.retire(f"{folder.adapter_id}@{folder.version}")
    disk.open.set()
    store.release(waiting.result(WAIT_S))
    wait_for(lambda: store.stats().num_evictions == 2)
    assert store.stats().resident_bytes == 0


@pytest.mark.parametrize("way", [Store.keep, Store.prefetch])
def test_a_version_that_an_alias_comes_back_to_stays(
    bert_base: BaseModel, folders: list[AdapterFolder], way: Callable[[Store, str], None]
) -> None:
    store, key = make(bert_base, folders, 3), f"a0@{folders[0].version}"
    adapter = ask(store, folders[0]).result(WAIT_S)
    store.retire(key)
    way(store, key)
    store.release(adapter)
    assert store.stats().num_resident == 1


def test_a_pin_holds_a_retired_version_until_it_is_unpinned(bert_base: BaseModel, folders: list[AdapterFolder]) -> None:
    store, key = make(bert_base, folders, 3), f"a0@{folders[0].version}"
    use(store, folders[0])
    store.pin(key)
    store.retire(key)
    assert store.stats().num_resident == 1
    store.unpin(key)
    assert store.stats().num_resident == 0


def test_a_version_says_in_which_memory_it_is(bert_base: BaseModel, folders: list[AdapterFolder]) -> None:
    first, second = folders[:2]
    store = Store(bert_base, device_bytes=max(first.weights.num_bytes, second.weights.num_bytes), host_bytes=1 << 30)

    keys = [key_of(one.adapter_id, one.version) for one in (first, second)]

    def tiers() -> list[str | None]:
        return [store.tiers(keys).get(key) for key in keys]

    assert tiers() == [None, None]
    store.load(first)
    assert tiers() == ["device", None]
    store.load(second)
    assert tiers() == ["host", "device"]
    store.unregister(key_of(first.adapter_id, first.version))
    assert tiers() == [None, "device"]


def test_a_retired_version_leaves_host_memory_too(
    bert_base: BaseModel, folders: list[AdapterFolder], disk: Disk
) -> None:
    store = Store(bert_base, host_bytes=1 << 30)
    use_of(store, folders[0])
    assert store.stats().host_bytes > 0
    store.retire(f"a0@{folders[0].version}")
    assert store.stats().host_bytes == 0


def test_hits_misses_and_the_time_of_loads_are_told(bert_base: BaseModel, folders: list[AdapterFolder]) -> None:
    seconds: list[float] = []
    store = Store(bert_base, on_loaded=seconds.append)
    for _ in range(3):
        use_of(store, folders[0])
    wait_for(lambda: len(seconds) == 1)
    assert 0 < seconds[0] < WAIT_S
    assert (store.stats().num_hits, store.stats().num_misses) == (2, 1)


def test_residents_tell_where_every_adapter_is(bert_base: BaseModel, folders: list[AdapterFolder]) -> None:
    num_bytes = folders[0].weights.num_bytes
    store = Store(bert_base, device_bytes=2 * num_bytes, host_bytes=1 << 30)
    for folder in folders[:3]:
        use_of(store, folder)
    store.pin(f"a1@{folders[1].version}")
    adapter = ask(store, folders[1]).result(WAIT_S)
    found = [(one.adapter_id, one.tier, one.is_pinned, one.num_users) for one in store.residents()]
    assert found == [("a1", "device", True, 1), ("a2", "device", False, 0), ("a0", "host", False, 0)]
    assert {(one.method, one.num_bytes) for one in store.residents()} == {(folders[0].method.name, num_bytes)}
    assert store.residents()[0].key == adapter.key
    assert store.stats().num_fitting == 2
    store.release(adapter)
