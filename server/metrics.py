"""What Prometheus sees. Every metric stands in `docs/operations.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.jobs import BatchReport, EngineHealth
from server.residency import Resident, StoreStats
from server.state_metrics import StateCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
METHODS = (1, 2, 3, 4, 6)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)
OTHER = "other"
MOST_TENANTS = 100
MOST_LABELS = 32
"""Labels of one adapter that are counted under their own name; what an adapter predicts beyond them shares `other`."""


class Meter(Protocol):
    """What the HTTP side counts, wherever the metrics are kept. Any thread may count."""

    def request_answered(self, adapter_id: str, code: str, seconds: float | None = None) -> None:
        """Count a request; adapter_id is the id of a known adapter, or empty. seconds: None if it never got started."""

    def texts_classified(self, num_texts: int, num_tokens: int, tokenize_s: float, queue_s: float) -> None:
        """Count the texts of a request."""

    def predicted(self, adapter_id: str, labels: Iterable[str]) -> None:
        """Count what texts were classified as, so that a shift of an adapter's answers can be seen."""

    def refused(self, code: str) -> None:
        """Count a request that no route has seen."""

    def tenant_classified(self, tenant: str, num_texts: int, num_tokens: int) -> None:
        """Count the texts of a tenant's request."""

    def watch_keys(self, count: Callable[[], float], is_fresh: Callable[[], float]) -> None:
        """Read the keys' number and state at every scrape."""

    async def text(self) -> bytes:
        """What Prometheus is given."""


class Metrics:
    """`Meter`: the metrics of one server, in a registry of their own. prometheus-client makes every call thread-safe.

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
        self._batch_methods = self._histogram("adaptermux_batch_methods", "Methods in a forward pass", METHODS)
        self._batch_failures = self._counter("adaptermux_batch_failures", "Batches in which a forward pass raised")
        self._batch_splits = self._counter("adaptermux_batch_splits", "Times that a batch was cut in two to try again")
        self._load_s = self._histogram("adaptermux_adapter_load_seconds", "Time to load an adapter", SECONDS)
        self._predictions = Counter(
            "adaptermux_predictions", "Texts by the label they were given", ["adapter", "label"],
            registry=self.registry,
        )  # fmt: skip
        self._labels: dict[str, set[str]] = {}
        self._adapters = Gauge("adaptermux_adapters", "Adapters known", ["status"], registry=self.registry)
        self._build = Gauge(
            "adaptermux_build_info", "What this server is made of; always 1",
            ["version", "torch", "base", "family", "dtype", "device"], registry=self.registry,
        )  # fmt: skip
        self._memory = Gauge(
            "adaptermux_device_memory_bytes", "Memory of the base model's device, by what it is for", ["part"],
            registry=self.registry,
        )  # fmt: skip
        self._state = StateCollector(self._known_label)
        self.registry.register(self._state)
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

    def request_answered(self, adapter_id: str, code: str, seconds: float | None = None) -> None:
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
        self._refused.labels(code).inc()

    def tenant_classified(self, tenant: str, num_texts: int, num_tokens: int) -> None:
        label = _capped(tenant, self._tenants, MOST_TENANTS)
        self._tenant_texts.labels(label).inc(num_texts)
        self._tenant_tokens.labels(label).inc(num_tokens)

    def tenant_refused(self, tenant: str) -> None:
        self._tenant_refused.labels(_capped(tenant, self._tenants, MOST_TENANTS)).inc()

    def predicted(self, adapter_id: str, labels: Iterable[str]) -> None:
        adapter = self._label(adapter_id)
        named = self._labels.setdefault(adapter, set())
        for label in labels:
            if adapter == OTHER or (label not in named and len(named) >= MOST_LABELS):
                label = OTHER
            named.add(label)
            self._predictions.labels(adapter, label).inc()

    def adapter_loaded(self, seconds: float) -> None:
        self._load_s.observe(seconds)

    def batch_run(self, report: BatchReport) -> None:
        self._batch_s.observe(report.compute_s)
        self._batch_texts.observe(report.num_texts)
        self._batch_tokens.observe(report.num_tokens)
        self._batch_adapters.observe(report.num_adapters)
        self._batch_methods.observe(report.num_methods)
        self._batch_failures.inc(report.failed)
        self._batch_splits.inc(report.num_splits)

    def describe(self, version: str, torch: str, base: str, family: str, dtype: str, device: str) -> None:
        """Say what the server is made of."""
        self._build.labels(version, torch, base, family, dtype, device).set(1)

    def memory_shared_out(self, parts: Mapping[str, int]) -> None:
        """Say what the memory of the device is for."""
        for part, num_bytes in parts.items():
            self._memory.labels(part).set(num_bytes)

    def watch_adapters(self, count: Callable[[str], float], statuses: Iterable[str]) -> None:
        """Count the adapters of each status at every scrape."""
        for status in statuses:
            self._adapters.labels(status).set_function(lambda status=status: count(status))  # type: ignore[misc]

    def watch_store(self, stats: Callable[[], StoreStats], residents: Callable[[], Sequence[Resident]]) -> None:
        """Read where adapters are at every scrape."""
        self._state.stats, self._state.residents = stats, residents

    def watch_engine(self, health: Callable[[], EngineHealth], waiting_adapters: Callable[[], Sequence[str]]) -> None:
        """Read what the engine does at every scrape."""
        self._state.health, self._state.waiting_adapters = health, waiting_adapters

    def _known_label(self, adapter_id: str) -> str:
        """The label of an adapter that has one: an adapter gets it when it is asked for, not for being in memory."""
        return adapter_id if adapter_id in self._named else OTHER

    async def text(self) -> bytes:
        return generate_latest(self.registry)

    def watch_keys(self, count: Callable[[], float], is_fresh: Callable[[], float]) -> None:
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
