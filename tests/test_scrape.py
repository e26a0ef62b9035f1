"""A Prometheus that looks at a server records what the load generator has seen of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.replicas.agreement import agreement, bucket
from benchmarks.replicas.fleet import ask_each
from benchmarks.replicas.load import send, workload
from benchmarks.replicas.scraper import PROMETHEUS, scraping
from server.app import create_app
from server.base_model import BaseModel
from server.gate import open_gate
from server.metrics import SECONDS
from server.service import Service
from tests.serving import listening, make_adapters, settings_for

EDGES_MS = [0.0, *(second * 1e3 for second in SECONDS), float("inf")]


@pytest.mark.skipif(PROMETHEUS is None, reason="needs prometheus (apt-get install prometheus)")
def test_prometheus_counts_every_request_of_a_load_and_its_quantiles_are_the_loads(
    bert_base: BaseModel, tmp_path: Path
) -> None:
    pytest.importorskip("yaml", reason="needs the extra `deploy`")
    names = ["one", "two", "three"]
    settings = settings_for(make_adapters(tmp_path / "adapters", bert_base, names), bert_base, look_s=0)
    with (
        Service(settings) as service,
        open_gate(settings) as gate,
        listening(create_app(service.desk, settings.max_body_bytes, gate), settings) as (host, port),
        scraping([port], tmp_path) as scraper,
    ):
        url = f"http://{host}:{port}"
        ask_each(url, names)
        since_s = scraper.wait_for_scrapes(1)
        folder = tmp_path / "samples"
        folder.mkdir()
        measured = send(url, names, workload(60, len(names), 0), 2, folder)
        found = agreement(scraper, since_s, scraper.wait_for_scrapes(1), measured)
        assert scraper.firing() == []
    assert measured.samples.errors() == {}
    assert found["answered"]["prometheus"] == found["answered"]["load_generator"] == len(measured.samples) > 100
    assert found["texts"]["prometheus"] == found["texts"]["load_generator"]
    for mark in ("p50", "p95"):
        recorded, seen = (EDGES_MS.index(bucket(found[mark][who])[1]) for who in ("prometheus_ms", "load_generator_ms"))
        assert abs(recorded - seen) <= 1, found


@pytest.mark.parametrize(
    ("latency_ms", "expected"),
    [(0.0, (0, 1)), (1.0, (0, 1)), (1.1, (1, 2.5)), (99, (50, 100)), (2e4, (1e4, float("inf")))],
)
def test_a_bucket_takes_what_is_at_most_its_upper_edge(latency_ms: float, expected: tuple[float, float]) -> None:
    assert bucket(latency_ms) == expected
