"""Metrics of what is so right now in store and engine, read when Prometheus asks.

Three of them have vLLM's names and meanings, by which the endpoint pickers of inference gateways choose a replica (the
model server protocol of gateway-api-inference-extension): how much waits and runs, and which adapters are in memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.jobs import EngineHealth
from server.residency import Resident, StoreStats

MOST_NAMED = 1000
"""Adapters in a label of `vllm:lora_requests_info`; readers give up on much longer ones."""
NOTHING = StoreStats(*(0,) * 9)
ENGINE_ALIVE = ("adaptermux_engine_alive", "1 while the engine works, 0 once it must be restarted, and until it is")
STORE_GAUGES = {
    "num_known": ("adaptermux_store_adapters", "Adapters that can be asked for"),
    "num_resident": ("adaptermux_resident_adapters", "Adapters in the memory of the base model's device"),
    "resident_bytes": ("adaptermux_adapter_resident_bytes", "Memory of these adapters"),
    "host_bytes": ("adaptermux_adapter_host_bytes", "Memory of adapters that the host keeps for the device"),
}
STORE_COUNTERS = {
    "num_loads": ("adaptermux_adapter_loads", "Adapters brought into memory"),
    "num_evictions": ("adaptermux_adapter_evictions", "Adapters taken out of memory"),
    "num_hits": ("adaptermux_adapter_hits", "Texts whose adapter was in memory"),
    "num_misses": ("adaptermux_adapter_misses", "Texts that had to wait for their adapter"),
}


class StateCollector(Collector):
    """name_of: the label of an adapter in metrics. What is read is set before the first scrape, and thread-safe."""

    def __init__(self, name_of: Callable[[str], str]) -> None:
        self._name_of = name_of
        self.stats: Callable[[], StoreStats] = lambda: NOTHING
        self.residents: Callable[[], Sequence[Resident]] = tuple
        self.health: Callable[[], EngineHealth] = lambda: EngineHealth(alive=False, num_waiting=0)
        self.waiting_adapters: Callable[[], Sequence[str]] = tuple

    def collect(self) -> Iterator[Metric]:
        stats, residents, health = self.stats(), self.residents(), self.health()
        for field, (name, text) in STORE_GAUGES.items():
            yield GaugeMetricFamily(name, text, value=getattr(stats, field))
        for field, (name, text) in STORE_COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(stats, field))
        yield self._resident(residents)
        yield _gauge(*ENGINE_ALIVE, health.alive)
        yield _gauge("adaptermux_engine_stalled", "1 while a forward pass takes longer than --stall-s", health.stalled)
        yield _gauge("adaptermux_waiting_texts", "Texts that wait for the engine", health.num_waiting)
        yield _gauge("adaptermux_running_texts", "Texts of the forward pass that runs", health.num_running)
        yield _gauge("vllm:num_requests_waiting", "The same as adaptermux_waiting_texts", health.num_waiting)
        yield _gauge("vllm:num_requests_running", "The same as adaptermux_running_texts", health.num_running)
        yield self._lora_requests_info(stats, residents)

    def _resident(self, residents: Iterable[Resident]) -> Metric:
        family = GaugeMetricFamily(
            "adaptermux_adapter_resident",
            "Adapters in memory, by where",
            labels=["adapter", "method", "tier", "pinned"],
        )
        counts = Counter(
            (self._name_of(one.adapter_id), one.method, one.tier, str(one.is_pinned).lower()) for one in residents
        )
        for labels, count in counts.items():
            family.add_metric(labels, count)
        return family

    def _lora_requests_info(self, stats: StoreStats, residents: Iterable[Resident]) -> Metric:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters on the device, those for which texts wait, and how many may be there; the value is the time",
            labels=["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        )
        on_device = (one.adapter_id for one in residents if one.tier == "device")
        family.add_metric([str(stats.num_fitting), _list(self.waiting_adapters()), _list(on_device)], time.time())
        return family


def text_without_engine() -> bytes:
    """What Prometheus is given while the process that keeps all metrics is gone: that it is."""
    registry = CollectorRegistry()
    Gauge(*ENGINE_ALIVE, registry=registry).set(0)
    return generate_latest(registry)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _list(names: Iterable[str]) -> str:
    return ",".join(islice(dict.fromkeys(names), MOST_NAMED))
