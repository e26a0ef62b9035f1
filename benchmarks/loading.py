"""What it takes to bring adapters to a device, and what passes beside it notice of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from itertools import cycle

from benchmarks.passes import WARM_UP_ROUNDS, Case, Pass, Texts, timed, wait_for
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.store import Store

NUM_LOADS = 40
NUM_BLOCKS = 4
"""Of passes beside which nothing is loaded, and as many beside which something is."""
STILL, MOVING = "nothing is loaded", "adapters are loaded"


def time_loads(base: BaseModel, folders: Sequence[AdapterFolder], from_host: bool) -> list[float]:
    """Seconds of loads in turn, where the device has room for one adapter, and the host's memory for all or none."""
    seconds = []
    with closing(_narrow(base, folders, from_host)) as store:
        for folder in folders:
            store.load(folder)
        for number in range(NUM_LOADS):
            wait_for(base.device)
            began = time.perf_counter()
            store.load(folders[number % len(folders)])
            wait_for(base.device)
            seconds.append(time.perf_counter() - began)
    return seconds


def time_beside(
    base: BaseModel,
    case: Case,
    texts: Texts,
    others: Sequence[AdapterFolder],
    rounds: int,
    is_over: Callable[[], bool],
) -> tuple[Mapping[str, list[Pass]], int]:
    """Passes while nothing is loaded, and while others are from the host's memory, block by block; number of loads."""
    found: dict[str, list[Pass]] = {STILL: [], MOVING: []}
    num_loads = 0
    for number in range(-WARM_UP_ROUNDS, 0):
        timed(case.forward, base.device, case.work(texts, number))
    with closing(_narrow(base, others, from_host=True)) as store:
        for folder in others:
            store.load(folder)
        turns = cycle(others)
        for block in range(2 * NUM_BLOCKS):
            is_moving, before = block % 2 == 1, store.stats().num_loads
            with meanwhile(lambda: store.load(next(turns))) if is_moving else nullcontext():
                for number in range(-(-rounds // NUM_BLOCKS)):
                    if is_over():
                        break
                    found[MOVING if is_moving else STILL].append(
                        timed(case.forward, base.device, case.work(texts, number))
                    )
            num_loads += store.stats().num_loads - before
    return found, num_loads


def _narrow(base: BaseModel, folders: Sequence[AdapterFolder], from_host: bool) -> Store:
    """A store with room for one of them on the device."""
    room = max(folder.weights.num_bytes for folder in folders)
    return Store(base, device_bytes=room, host_bytes=room * len(folders) if from_host else 0)


@contextmanager
def meanwhile(step: Callable[[], object]) -> Iterator[None]:
    """Another thread takes one step after the other until this is left; what it raises is raised here."""
    is_enough = threading.Event()

    def run() -> None:
        while not is_enough.is_set():
            step()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            is_enough.set()
        running.result()
