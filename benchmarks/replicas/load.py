"""The load that replicas get through a router, from Locust's open loop, and what came of it."""

from __future__ import annotations

import random
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.replicas.fleet import Fleet, Reading, ask_each, until
from decision.rows import Spread
from loadtest.measure import Measured, Span, Target, measure
from loadtest.remote import Remote
from loadtest.service import Service
from loadtest.workload import Workload

ZIPF_S = 1.0
WARMUP_S = 2.0


@dataclass(frozen=True)
class Scale:
    """How much is measured. balances: bounds on the load to compare, in percent; 0 has none."""

    rate_per_s: float = 60.0
    crowded_rate_per_s: float = 100.0
    spell_s: float = 15.0
    num_rounds: int = 3
    balances: Sequence[int] = (0, 125, 150, 200, 300, 500)


@dataclass(frozen=True)
class Spell:
    """A load that is over. order: the adapters, the most popular first. before, after: of every replica."""

    order: Sequence[str]
    measured: Measured
    before: Sequence[Reading]
    after: Sequence[Reading]

    @property
    def hit_rate(self) -> float:
        """Part of the texts whose adapter was in memory, on all replicas together."""
        num_hits = sum(one.num_hits for one in self.after) - sum(one.num_hits for one in self.before)
        num_misses = sum(one.num_misses for one in self.after) - sum(one.num_misses for one in self.before)
        return num_hits / (num_hits + num_misses)

    @property
    def residency(self) -> list[float]:
        """Part of the adapters that is in memory, on each replica."""
        return [len(one.resident & set(self.order)) / len(self.order) for one in self.after]

    @property
    def requests(self) -> list[Counter[str]]:
        """Answered by each replica, by adapter."""
        return [after.requests - before.requests for before, after in zip(self.before, self.after, strict=True)]

    def latency(self, adapters: Sequence[int] | None = None) -> Spread:
        """In milliseconds, of the measured span. adapters: by popularity, all if None."""
        samples = self.measured.samples if adapters is None else self.measured.samples.of(adapters)
        spread = samples.between(self.measured.start_s, self.measured.end_s).answered().spread("latency_ms")
        assert spread is not None, "the load lasted long enough for an answer"
        return spread


def workload(rate_per_s: float, num_adapters: int, seed: int) -> Workload:
    """Popularity falls with the rank, as in Zipf's law."""
    return Workload(num_hot=num_adapters, zipf_s=ZIPF_S, rate_per_s=rate_per_s, seed=seed)


def crowded(rate_per_s: float, num_adapters: int, seed: int) -> Workload:
    """The same rate in all, of which the most popular adapter takes half."""
    share = workload(rate_per_s, num_adapters, seed).shares()[0]
    others = rate_per_s / 2 / (1 - share)
    return workload(others, num_adapters, seed).model_copy(update={"flood": (1 - share) / share})


def popularity(adapter_ids: Sequence[str]) -> list[str]:
    """The adapters in an order of their own, the most popular first."""
    order = sorted(adapter_ids)
    random.Random(0).shuffle(order)
    return order


def send(
    url: str, order: Sequence[str], work: Workload, seconds: float, folder: Path, enough: threading.Event | None = None
) -> Measured:
    """Let Locust ask until the time is up, or it is enough, and wait for what is not answered yet."""
    enough = enough or threading.Event()
    hot = [(adapter_id, "lora") for adapter_id in order]
    target = Target("replicas", Service(Remote(url), None), hot, len(hot), "", "", "cpu", {}, True)
    return measure(target, work, Span(WARMUP_S, seconds), folder, is_enough=enough.is_set)


@contextmanager
def sending(
    url: str, order: Sequence[str], work: Workload, seconds: float, enough: threading.Event | None = None
) -> Iterator[Future[Measured]]:
    """The same meanwhile, from when the first was answered."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send, url, order, work, seconds, Path(folder), enough)
        until(lambda: sent.done() or _is_on(Path(folder)), "the load is on")
        yield sent
        sent.result()


def run_spell(fleet: Fleet, url: str, work: Workload, seconds: float) -> Spell:
    """A load on replicas that have just been asked for every adapter once, the most popular last."""
    order = popularity(fleet.adapter_ids)
    ask_each(url, reversed(order))
    before = fleet.read()
    with tempfile.TemporaryDirectory() as folder:
        measured = send(url, order, work, seconds, Path(folder))
    return Spell(order, measured, before, fleet.read())


def _is_on(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("*.samples"))
