"""One stream of requests against one running service: send it, and keep what became of it."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decision.rows import LatencyRow, MemoryRow, Provenance, Spread
from loadtest.errors import LoadTestError
from loadtest.gauge import HOST_BYTES, RESIDENT, RESIDENT_BYTES, Gauge, Reading, growth_bytes_per_h
from loadtest.job import NATIVE, Job
from loadtest.samples import Samples
from loadtest.service import Service
from loadtest.workload import Workload

LOCUSTFILE = Path(__file__).parent / "locustfile.py"
RECENT = 2000
LOOK_S = 1.0
BATCH = {name: f"adaptermux_batch_{name}" for name in ("texts", "tokens", "adapters", "methods")}
GRACE_S = 30
START_S = 2
"""The load generator counts its time from before the first request; what is sent beyond the span is not measured."""


@dataclass(frozen=True)
class Target:
    """What is asked. hot: the adapters among which requests choose, the most popular first, and their methods."""

    name: str
    service: Service
    hot: Sequence[tuple[str, str]]
    num_registered: int
    base: str
    dtype: str
    device: str
    settings: Mapping[str, Any]
    has_random_weights: bool
    hot_bytes: int | None = None
    wire: str = NATIVE

    def methods(self) -> dict[str, int]:
        """Hot adapters by method."""
        found = [method for _, method in self.hot]
        return {method: found.count(method) for method in dict.fromkeys(found)}


@dataclass(frozen=True)
class Span:
    """How long a stream is sent; the warm-up is not measured."""

    warmup_s: float
    duration_s: float


@dataclass(frozen=True)
class Progress:
    """What is to be seen while it runs."""

    elapsed_s: float
    total_s: float
    rate_per_s: float
    p95_ms: float | None
    rss_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """samples: of all requests. start_s, end_s: the measured span, Unix time. readings: the first is from before."""

    samples: Samples
    start_s: float
    end_s: float
    readings: Sequence[Reading]
    client_cpu_s: float

    @property
    def during(self) -> list[Reading]:
        """The readings of the measured span."""
        return [one for one in self.readings if self.start_s <= one.at_s < self.end_s + LOOK_S]


Show = Callable[[Progress], None]


def measure(
    target: Target,
    workload: Workload,
    span: Span,
    folder: Path,
    num_processes: int = 1,
    show: Show = lambda _: None,
    is_enough: Callable[[], bool] = lambda: False,
) -> Measured:
    """Send the stream with Locust and wait until it is over. folder: an empty one for the raw samples.

    is_enough: asked now and then, and ends the stream sooner. Raises LoadTestError.
    """
    job = Job(
        workload=workload,
        adapters=[adapter_id for adapter_id, _ in target.hot],
        wire=target.wire,
        headers=dict(target.service.remote.headers),
        num_senders=num_processes if workload.num_users is None else 1,
        samples=folder.absolute(),
    )
    path = folder / "job.json"
    job.write(path)
    before = _children_cpu_s()
    try:
        with Gauge(target.service, LOOK_S) as gauge:
            _run_locust(target, workload, span, path, num_processes, gauge, show, is_enough)
    finally:
        path.unlink()  # it may hold a key
    samples = Samples.read(folder)
    if not len(samples):
        raise LoadTestError("the load generator sent nothing")
    if gauge.trouble is not None:
        raise LoadTestError(f"the service could not be looked at during the test: {gauge.trouble}")
    start = float(samples.records["due_s"][0]) + span.warmup_s
    return Measured(samples, start, start + span.duration_s, gauge.readings, _children_cpu_s() - before)


def _run_locust(
    target: Target,
    workload: Workload,
    span: Span,
    job: Path,
    num_processes: int,
    gauge: Gauge,
    show: Show,
    is_enough: Callable[[], bool],
) -> None:
    num_users = workload.num_users or num_processes
    total_s = math.ceil(span.warmup_s + span.duration_s) + START_S
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--job", str(job)]
    command += ["--headless", "--host", target.service.remote.url, "--users", str(num_users)]
    command += [f"--spawn-rate={num_users}", f"--run-time={total_s}s", "--only-summary", "--exit-code-on-error=0"]
    command += ["--stop-timeout", str(math.ceil(workload.timeout_s) + 1), "--loglevel", "WARNING"]
    command += ["--processes", str(num_processes)] if num_processes > 1 else []
    log = job.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output, subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=output, stdin=subprocess.DEVNULL
    ) as process:  # fmt: skip
        began = time.monotonic()
        limit = total_s + workload.timeout_s + GRACE_S
        is_ending = False
        try:
            while (elapsed := time.monotonic() - began) < limit:
                try:
                    process.wait(LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    show(_progress(job.parent, elapsed, total_s, gauge))
                if not is_ending and is_enough():
                    is_ending = True
                    process.terminate()  # it waits for the answers to what it has sent
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode != 0:
        said = log.read_text(encoding="utf-8").strip().splitlines()
        raise LoadTestError(f"the load generator ended with {process.returncode}: {said[-1] if said else 'no word'}")
    log.unlink()


def _progress(folder: Path, elapsed: float, total_s: float, gauge: Gauge) -> Progress:
    recent = Samples.read(folder, RECENT).answered()
    due = recent.records["due_s"]
    last = recent.between(due[-1] - 5, math.inf) if len(recent) else recent
    spread = last.spread("latency_ms")
    seconds = float(due[-1] - last.records["due_s"][0]) if len(last) else 0.0
    rate = (len(last) - 1) / seconds if seconds > 0 else 0.0
    return Progress(elapsed, total_s, rate, spread.p95 if spread else None, gauge.readings[-1].rss_bytes)


def latency_row(about: Mapping[str, Any], measured: Measured, part: str, adapters: Sequence[int] | None) -> LatencyRow:
    """Figures of one run. about: the fields of `decision.rows.Served`, and others to be set.

    adapters: of which of the hot ones, by rank; None for all.
    """
    samples = measured.samples if adapters is None else measured.samples.of(adapters)
    sent = samples.between(measured.start_s, measured.end_s)
    finished = samples.finished_between(measured.start_s, measured.end_s).records
    right = sent.answered()
    duration = measured.end_s - measured.start_s
    figures: dict[str, Spread | None] = {
        name: right.spread(name)
        for name in ("latency_ms", "queue_ms", "compute_ms", "tokenize_ms", "service_ms", "send_delay_ms")
    }
    num_tokens = int(finished["num_tokens"].sum())
    return LatencyRow(
        **about,
        **figures,
        part=part,
        duration_s=round(duration, 3),
        num_requests=len(sent),
        num_errors=len(sent) - len(right),
        errors=sent.errors(),
        throughput_per_s=round(len(finished) / duration, 3),
        texts_per_s=round(int(finished["num_texts"].sum()) / duration, 3),
        tokens_per_s=round(num_tokens / duration, 1) if num_tokens else None,
        client_cpu_s=round(measured.client_cpu_s, 2),
        **_of_service(measured.during, duration),
    )


def memory_rows(about: Mapping[str, Any], measured: Measured) -> list[MemoryRow]:
    """What the service held before the load, and the most under it."""
    idle, during = measured.readings[0], measured.during or list(measured.readings[-1:])
    growth = growth_bytes_per_h(during)
    return [
        _memory_row(about, "idle", [idle], None),
        _memory_row(about, "load", during, None if growth is None else round(growth)),
    ]


def memory_over_time(measured: Measured) -> dict[str, list[Any]]:
    """The fields of `loadtest.timeline.Timeline` that say what the service held, and when."""
    return {
        "at_s": [one.at_s for one in measured.during],
        "rss_bytes": [one.rss_bytes for one in measured.during],
        "resident_adapter_bytes": [one.metrics.get(RESIDENT_BYTES) for one in measured.during],
    }


def about(
    scenario: str, case: str, repeat: int, target: Target, workload: Workload, provenance: Provenance
) -> dict[str, Any]:
    """What all rows of a run share."""
    return {
        "scenario": scenario,
        "case": case,
        "repeat": repeat,
        "target": target.name,
        "base": target.base,
        "dtype": target.dtype,
        "device": target.device,
        "service": dict(target.settings),
        "methods": target.methods(),
        "has_random_weights": target.has_random_weights,
        "num_registered": target.num_registered,
        "num_hot": len(target.hot),
        "hot_bytes": target.hot_bytes,
        "workload": workload.model_dump(mode="json", exclude_defaults=True) | {"seed": workload.seed},
        "provenance": provenance,
    }


def _of_service(readings: Sequence[Reading], duration_s: float) -> dict[str, Any]:
    """What the service's own counters say of a span, which they are not read at the very ends of."""
    if len(readings) < 2:
        return {}
    first, last = readings[0], readings[-1]

    def change(name: str) -> float:
        return last.metrics.get(name, 0.0) - first.metrics.get(name, 0.0)

    num_batches = change("adaptermux_batch_texts_count")
    found: dict[str, Any] = {}
    if num_batches > 0:
        found["batch"] = {name: round(change(f"{metric}_sum") / num_batches, 3) for name, metric in BATCH.items()}
        found["adapter_loads"] = round(change("adaptermux_adapter_loads_total"))
        found["adapter_misses"] = round(change("adaptermux_adapter_misses_total"))
    if first.cpu_s is not None and last.cpu_s is not None:
        found["server_cpu_s"] = round((last.cpu_s - first.cpu_s) / (last.at_s - first.at_s) * duration_s, 2)
    return found


def _memory_row(about: Mapping[str, Any], moment: str, readings: Sequence[Reading], growth: int | None) -> MemoryRow:
    def most(values: Sequence[float | None]) -> int | None:
        known = [value for value in values if value is not None]
        return round(max(known)) if known else None

    return MemoryRow(
        **about,
        moment=moment,
        rss_bytes=most([one.rss_bytes for one in readings]),
        anonymous_bytes=most([one.anonymous_bytes for one in readings]),
        device_bytes=most([one.device_bytes for one in readings]),
        resident_adapters=most([one.metrics.get(RESIDENT) for one in readings]),
        resident_adapter_bytes=most([one.metrics.get(RESIDENT_BYTES) for one in readings]),
        host_adapter_bytes=most([one.metrics.get(HOST_BYTES) for one in readings]),
        growth_bytes_per_h=growth,
    )


def _children_cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
