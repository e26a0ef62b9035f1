"""What a Prometheus has recorded of a load, beside what the load generator has seen of it."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.replicas.fleet import Fleet, ask_each
from benchmarks.replicas.load import Scale, popularity, send, workload
from benchmarks.replicas.router import routing
from benchmarks.replicas.scraper import Scraper, scraping
from loadtest.measure import Measured
from server.metrics import SECONDS

ANSWERED = 'sum(adaptermux_requests_total{code="ok"})'
TEXTS = "sum(adaptermux_texts_total)"
LATENCY = "sum by (le) (adaptermux_request_seconds_bucket)"
MARKS = {"p50": 0.5, "p95": 0.95}


def scrape(fleet: Fleet, config: str, scale: Scale, folder: Path) -> dict[str, Any]:
    """A load through the router, with a Prometheus that looks at every replica once a second."""
    order = popularity(fleet.adapter_ids)
    with scraping(fleet.ports, folder) as scraper, routing(config, fleet.ports, folder) as router:
        ask_each(router.url, reversed(order))
        since_s = scraper.wait_for_scrapes(len(fleet.replicas))
        with TemporaryDirectory() as samples:
            measured = send(router.url, order, workload(scale.rate_per_s, len(order), 0), scale.spell_s, Path(samples))
        until_s = scraper.wait_for_scrapes(len(fleet.replicas))
        return agreement(scraper, since_s, until_s, measured) | {"alerts_firing": scraper.firing()}


def agreement(scraper: Scraper, since_s: float, until_s: float, measured: Measured) -> dict[str, Any]:
    """since_s, until_s: moments between which nothing but the load was asked, the first of them not the first ever."""
    samples = measured.samples.answered()
    latency = samples.spread("service_ms")
    assert latency is not None, "our server tells how long it took"
    found: dict[str, Any] = {
        "answered": {
            "prometheus": round(_difference(scraper, ANSWERED, since_s, until_s)),
            "load_generator": len(samples),
        },
        "texts": {
            "prometheus": round(_difference(scraper, TEXTS, since_s, until_s)),
            "load_generator": int(samples.records["num_texts"].sum()),
        },
    }
    for name, mark in MARKS.items():
        recorded = f"histogram_quantile({mark}, {LATENCY} - {LATENCY.replace('_bucket', f'_bucket @ {since_s}')})"
        recorded_ms = scraper.value(recorded, until_s) * 1e3
        seen_ms = getattr(latency, name)
        low_ms, high_ms = bucket(recorded_ms)
        found[name] = {
            "prometheus_ms": round(recorded_ms, 2),
            "load_generator_ms": round(seen_ms, 2),
            "bucket_ms": [low_ms, high_ms],
            "agrees": abs(recorded_ms - seen_ms) <= high_ms - low_ms,
        }
    return found


def bucket(latency_ms: float) -> tuple[float, float]:
    """The histogram's bucket that a latency falls into."""
    edges = [0.0, *(second * 1e3 for second in SECONDS), float("inf")]
    place = max(1, bisect_left(edges, latency_ms))
    return edges[place - 1], edges[place]


def _difference(scraper: Scraper, expression: str, since_s: float, until_s: float) -> float:
    return scraper.value(expression, until_s) - scraper.value(expression, since_s)
