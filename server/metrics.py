"""What Prometheus sees. Every metric stands in `docs/operations.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)
OTHER = "other"
MOST_TENANTS = 100
STORE_GAUGES = {
    "num_known": ("adaptermux_store_adapters", "Adapters that can be asked for"),
    "num_resident": ("adaptermux_resident_adapters", "Adapters in the memory of the base model's device"),
    "resident_bytes": ("adaptermux_adapter_resident_bytes", "Memory of these adapters"),
    "host_bytes": ("adaptermux_adapter_host_bytes", "Memory of adapters that the host keeps for the device"),
}
STORE_COUNTERS = {
    "num_loads": ("adaptermux_adapter_loads", "Adapters brought into memory"),
    "num_evictions": ("adaptermux_adapter_evictions", "Adapters taken out of memory"),
    "num_misses": ("adaptermux_adapter_misses", "Texts that had to wait for their adapter"),
}


class Metrics:
    """The metrics of one server, in a registry of their own. prometheus-client makes every call thread-safe.

    The first `top_adapters` adapters get a label of their own, later ones share `other`.
    """

    def __init__(self, top_adapters: int) -> None:
        self.registry = CollectorRegistry()
        self._top = top_adapters
        self._named: set[str] = set()
        self._tenants: set[str] = set()
        self._requests = Counter(
            "adaptermux_requests", "Classification requests answered", ["adapter", "code"], registry=self.registry
        )
        self._request_s = Histogram(
            "adaptermux_request_seconds", "Time of a classification request", ["adapter"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._tokenize_s = self._histogram("adaptermux_tokenize_seconds", "Time to tokenise a request", SECONDS)
        self._queue_s = self._histogram("adaptermux_queue_seconds", "Longest wait of a request's texts", SECONDS)
        self._texts = self._counter("adaptermux_texts", "Texts classified")
        self._tokens = self._counter("adaptermux_tokens", "Tokens classified, special tokens included")
        self._batch_s = self._histogram("adaptermux_batch_seconds", "Time of a forward pass", SECONDS)
        self._batch_texts = self._histogram("adaptermux_batch_texts", "Texts in a forward pass", COUNTS)
        self._batch_tokens = self._histogram("adaptermux_batch_tokens", "Tokens in a forward pass", TOKENS)
        self._batch_adapters = self._histogram("adaptermux_batch_adapters", "Adapters in a forward pass", COUNTS)
        self._batch_failures = self._counter("adaptermux_batch_failures", "Forward passes that raised")
        self._adapters = Gauge("adaptermux_adapters", "Adapters known", ["status"], registry=self.registry)
        self._store = StoreCollector()
        self.registry.register(self._store)
        self._refused = Counter(
            "adaptermux_refused", "Requests refused by their head or body alone", ["code"], registry=self.registry
        )
        self._tenant_texts = Counter(
            "adaptermux_tenant_texts", "Texts classified for a tenant", ["tenant"], registry=self.registry
        )
        self._tenant_tokens = Counter(
            "adaptermux_tenant_tokens", "Tokens classified for a tenant", ["tenant"], registry=self.registry
        )
        self._tenant_refused = Counter(
            "adaptermux_tenant_refused", "Requests beyond a tenant's quota", ["tenant"], registry=self.registry
        )
        self._keys = Gauge("adaptermux_keys", "Keys that are known", registry=self.registry)
        self._keys_fresh = Gauge(
            "adaptermux_keys_fresh", "1 while the keys are those of the file, 0 while it is wrong and older ones stay",
            registry=self.registry,
        )  # fmt: skip
        self._waiting = Gauge("adaptermux_waiting_texts", "Texts that wait for the engine", registry=self.registry)

    def request_answered(self, adapter_id: str, code: str, seconds: float | None = None) -> None:
        """Count a request; adapter_id is the id of a known adapter, or empty. seconds: None if it never got started."""
        label = self._label(adapter_id)
        self._requests.labels(label, code).inc()
        if seconds is not None:
            self._request_s.labels(label).observe(seconds)

    def texts_classified(self, num_texts: int, num_tokens: int, tokenize_s: float, queue_s: float) -> None:
        self._texts.inc(num_texts)
        self._tokens.inc(num_tokens)
        self._tokenize_s.observe(tokenize_s)
        self._queue_s.observe(queue_s)

    def refused(self, code: str) -> None:
        """Count a request that no route has seen."""
        self._refused.labels(code).inc()

    def tenant_classified(self, tenant: str, num_texts: int, num_tokens: int) -> None:
        label = _capped(tenant, self._tenants, MOST_TENANTS)
        self._tenant_texts.labels(label).inc(num_texts)
        self._tenant_tokens.labels(label).inc(num_tokens)

    def tenant_refused(self, tenant: str) -> None:
        self._tenant_refused.labels(_capped(tenant, self._tenants, MOST_TENANTS)).inc()

    def batch_run(self, num_texts: int, num_tokens: int, num_adapters: int, seconds: float, failed: bool) -> None:
        self._batch_s.observe(seconds)
        self._batch_texts.observe(num_texts)
        self._batch_tokens.observe(num_tokens)
        self._batch_adapters.observe(num_adapters)
        self._batch_failures.inc(1 if failed else 0)

    def watch_adapters(self, count: Callable[[str], float], statuses: Iterable[str]) -> None:
        """Count the adapters of each status at every scrape."""
        for status in statuses:
            self._adapters.labels(status).set_function(lambda status=status: count(status))  # type: ignore[misc]

    def watch_store(self, read: Callable[[], object]) -> None:
        """Read a record with the fields of `STORE_GAUGES` and `STORE_COUNTERS` at every scrape."""
        self._store.read = read

    def watch_waiting(self, read: Callable[[], float]) -> None:
        """Read the queue length at every scrape."""
        self._waiting.set_function(read)

    def watch_keys(self, count: Callable[[], float], is_fresh: Callable[[], float]) -> None:
        """Read the keys' number and state at every scrape."""
        self._keys.set_function(count)
        self._keys_fresh.set_function(is_fresh)

    def _label(self, adapter_id: str) -> str:
        return _capped(adapter_id, self._named, self._top)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)


def _capped(name: str, named: set[str], most: int) -> str:
    """The label of a name: itself if it is among the first, else `other`."""
    if name in named:
        return name
    if name and len(named) < most:
        named.add(name)
        return name
    return OTHER


class StoreCollector(Collector):
    """What happens in the store, read when Prometheus asks."""

    def __init__(self) -> None:
        self.read: Callable[[], object] = object

    def collect(self) -> Iterator[Metric]:
        stats = self.read()
        for field, (name, text) in STORE_GAUGES.items():
            yield GaugeMetricFamily(name, text, value=getattr(stats, field, 0))
        for field, (name, text) in STORE_COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(stats, field, 0))
