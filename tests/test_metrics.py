"""What Prometheus and inference gateways are told."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.jobs import BatchReport, EngineHealth
from server.metrics import MOST_LABELS, Metrics
from server.residency import Resident, StoreStats
from server.state_metrics import MOST_NAMED

REPORT = BatchReport(
    num_texts=6, num_tokens=90, num_adapters=3, num_methods=2, num_splits=4, compute_s=0.02, failed=True
)
STATS = StoreStats(
    num_known=9,
    num_resident=3,
    num_fitting=7,
    resident_bytes=300,
    host_bytes=100,
    num_loads=5,
    num_evictions=2,
    num_hits=40,
    num_misses=6,
)
RESIDENTS = [
    Resident("a", "2" * 12, "lora", 100, "device", is_pinned=True, num_users=1),
    Resident("a", "1" * 12, "lora", 100, "device", is_pinned=False, num_users=0),
    Resident("b", "3" * 12, "ia3", 100, "device", is_pinned=False, num_users=0),
    Resident("c", "4" * 12, "ia3", 100, "host", is_pinned=False, num_users=0),
    Resident("d", "5" * 12, "ia3", 100, "device", is_pinned=False, num_users=0),
]


@pytest.fixture
def metrics() -> Metrics:
    """Those of a server with work, as its parts fill them."""
    metrics = Metrics(top_adapters=2)
    metrics.describe("1.0", "2.13", "mini", "bert", "float32", "cpu")
    for adapter_id in ("a", "b", "c"):
        metrics.request_answered(adapter_id, "ok", 0.01)
    metrics.batch_run(REPORT)
    metrics.adapter_loaded(0.002)
    metrics.predicted("a", ["yes", "no", "yes"])
    metrics.watch_adapters(lambda status: 1, ("ready", "failed"))
    metrics.watch_store(lambda: STATS, lambda: RESIDENTS)
    metrics.watch_engine(lambda: EngineHealth(True, num_waiting=4, num_running=6), lambda: ["b", "d"])
    return metrics


def samples(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(metrics: Metrics, name: str, **labels: str) -> float:
    [found] = [one for sample, given, one in samples(metrics) if sample == name and given == labels]
    return found


def test_prometheus_own_checker_finds_nothing_but_the_names_that_are_not_ours(metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    text = generate_latest(metrics.registry)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    complaints = done.stderr.decode().splitlines()
    assert done.returncode in (0, 3), complaints  # 3: it has complaints, and could read everything
    assert [line for line in complaints if not line.startswith("vllm:")] == []


def test_batches_tell_what_they_were_made_of_and_how_often_they_were_split(metrics: Metrics) -> None:
    for name, expected in (
        ("texts", 6), ("tokens", 90), ("adapters", 3), ("methods", 2), ("seconds", 0.02),
    ):  # fmt: skip
        assert value(metrics, f"adaptermux_batch_{name}_sum") == expected
    assert value(metrics, "adaptermux_batch_splits_total") == 4
    assert value(metrics, "adaptermux_batch_failures_total") == 1


def test_the_store_tells_hits_misses_loads_and_their_time(metrics: Metrics) -> None:
    assert value(metrics, "adaptermux_adapter_hits_total") == 40
    assert value(metrics, "adaptermux_adapter_misses_total") == 6
    assert value(metrics, "adaptermux_adapter_load_seconds_sum") == 0.002
    assert value(metrics, "adaptermux_adapter_host_bytes") == 100


def test_residents_are_named_if_they_were_asked_for_and_counted_together_otherwise(metrics: Metrics) -> None:
    found = {
        (labels["adapter"], labels["method"], labels["tier"], labels["pinned"]): count
        for name, labels, count in samples(metrics)
        if name == "adaptermux_adapter_resident"
    }
    assert found == {
        ("a", "lora", "device", "true"): 1,
        ("a", "lora", "device", "false"): 1,
        ("b", "ia3", "device", "false"): 1,
        ("other", "ia3", "host", "false"): 1,
        ("other", "ia3", "device", "false"): 1,
    }


def test_predictions_are_counted_by_label_up_to_a_limit_and_one_past_it(metrics: Metrics) -> None:
    assert value(metrics, "adaptermux_predictions_total", adapter="a", label="yes") == 2
    metrics.predicted("b", [f"label-{index}" for index in range(MOST_LABELS)])
    assert value(metrics, "adaptermux_predictions_total", adapter="b", label=f"label-{MOST_LABELS - 1}") == 1
    metrics.predicted("b", ["one more", "and another", "label-0"])
    assert value(metrics, "adaptermux_predictions_total", adapter="b", label="other") == 2
    assert value(metrics, "adaptermux_predictions_total", adapter="b", label="label-0") == 2
    for index in range(100):
        metrics.predicted(f"adapter-{index}", ["x", "y"])
    assert value(metrics, "adaptermux_predictions_total", adapter="other", label="other") == 200


def test_the_state_of_the_engine_is_told(metrics: Metrics) -> None:
    assert value(metrics, "adaptermux_engine_alive") == 1
    assert value(metrics, "adaptermux_engine_stalled") == 0
    assert value(metrics, "adaptermux_waiting_texts") == 4
    assert value(metrics, "adaptermux_running_texts") == 6
    metrics.watch_engine(lambda: EngineHealth(False, 4, stalled=True), tuple)
    assert value(metrics, "adaptermux_engine_alive") == 0
    assert value(metrics, "adaptermux_engine_stalled") == 1
    build = {"version": "1.0", "torch": "2.13", "base": "mini", "family": "bert", "dtype": "float32", "device": "cpu"}
    assert value(metrics, "adaptermux_build_info", **build) == 1


def test_gateways_read_queue_and_adapters_under_the_names_they_know(metrics: Metrics) -> None:
    assert value(metrics, "vllm:num_requests_waiting") == 4
    assert value(metrics, "vllm:num_requests_running") == 6
    names = {"max_lora": "7", "waiting_lora_adapters": "b,d", "running_lora_adapters": "a,b,d"}
    assert abs(value(metrics, "vllm:lora_requests_info", **names) - time.time()) < 60


def test_thousands_of_residents_are_told_in_milliseconds_and_few_lines(metrics: Metrics) -> None:
    residents = [
        Resident(f"adapter-{index:05d}", "0" * 12, "lora", 100, "device", is_pinned=False, num_users=0)
        for index in range(5000)
    ]
    metrics.watch_store(lambda: STATS, lambda: residents)
    began = time.perf_counter()
    text = generate_latest(metrics.registry).decode()
    assert time.perf_counter() - began < 1
    lines = [line for line in text.splitlines() if line.startswith("adaptermux_adapter_resident{")]
    assert lines == ['adaptermux_adapter_resident{adapter="other",method="lora",pinned="false",tier="device"} 5000.0']
    [line] = [line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{")]
    assert line.count("adapter-") == MOST_NAMED
    assert len(line) < 64_000
