"""How long a replica takes for a batch, fitted to rows of evidence; and what else the rows say of one replica."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from decision.evidence import Evidence
from decision.rows import LatencyRow
from decision.serving import DEVICES, SERVICE, Serving
from server.batch_budget import FEWEST_TOKENS, ROUND
from server.settings import Settings

BENCHMARK = Path(__file__).parent.parent / "results" / "latest.json"
MOST_ERRORS = 0.001
"""Part of the requests of a row that may have failed."""
LOADS = "adapter-load"
"""The scenario whose requests are loads of adapters."""
PEERS = "peers"
"""The scenario in which other services stand beside ours, and ours is started in several ways."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of one replica: a batch takes fixed_s, and more for each token and each adapter in it."""

    fixed_s: float
    token_s: float
    adapter_s: float
    beside_s: float
    """What a request takes beside waiting and its batch: HTTP, tokens, the answer."""
    batch_tokens: int
    """A batch takes all that waits, up to so many."""

    def batch_s(self, num_tokens: float, num_adapters: float) -> float:
        return self.fixed_s + self.token_s * num_tokens + self.adapter_s * num_adapters

    def capacity_per_s(self, mean_tokens: float) -> float:
        """Texts a second in full batches, each text with an adapter of its own."""
        num_texts = max(1.0, self.batch_tokens / mean_tokens)
        return num_texts / self.batch_s(num_texts * mean_tokens, num_texts)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the rows of one base, format and machine say. Errors are parts of what was measured."""

    base: str
    dtype: str
    device: str
    machine: str
    commits: tuple[str, ...]
    num_rows: int
    median_error: float
    worst_error: float
    left_out_error: float
    """The median, each row predicted from the others."""
    pace: Pace
    mean_tokens: float
    adapter_bytes: float
    """Of one adapter, in the mean over those of four methods."""
    base_bytes: int
    """Of a process without adapters."""
    registered_bytes: float | None
    """Memory for each adapter that is known, in use or not; None: not measured."""
    load_s: float
    """To bring an adapter into memory from a disk whose pages are cached."""
    load_source: str
    cpu_at_full: float
    """Part of the machine's cores that a replica uses which is never idle."""
    http_cpu_s: float | None
    """Processor time of a request outside the engine."""
    gpu_texts_per_s: float | None
    """Of the same base on a GPU, over all its rows; None: there are none."""


def measured(evidence: Evidence, device: str = "cpu", dtype: str = "bfloat16") -> Measured | None:
    """Of the base and machine that have the most rows; None where there are too few for a fit."""
    rows = [row for row in evidence.latencies if _counts(row, device, dtype)]
    if not rows:
        return None
    base, machine = Counter((row.base, row.provenance.machine) for row in rows).most_common(1)[0][0]
    rows = [row for row in rows if row.base == base and row.provenance.machine == machine]
    if len(rows) < 6:
        return None
    weights, taken = _features(rows), np.array([_batch_s(row) for row in rows])
    factors = _fitted(weights, taken)
    errors = np.abs(weights @ factors / taken - 1)
    left_out = [_left_out_error(weights, taken, index) for index in range(len(rows))]
    full = [row for row in rows if row.num_users is not None and row.server_cpu_s is not None]
    with_bytes = [row for row in rows if row.hot_bytes and len(row.methods) > 1]
    memory = Serving(evidence, device, base).memory
    load_s, load_source = _load(evidence.latencies, device, base)
    return Measured(
        base=base,
        dtype=dtype,
        device=rows[0].device,
        machine=machine,
        commits=tuple(sorted({row.provenance.commit for row in rows})),
        num_rows=len(rows),
        median_error=float(np.median(errors)),
        worst_error=float(errors.max()),
        left_out_error=float(np.median(left_out)),
        pace=_pace(factors, rows),
        mean_tokens=median((row.tokens_per_s or 0) / row.texts_per_s for row in rows if "texts" not in row.workload),
        adapter_bytes=median(row.hot_bytes / row.num_hot for row in with_bytes if row.hot_bytes),
        base_bytes=memory.base_bytes if memory else 0,
        registered_bytes=memory.bytes_per_registered if memory else None,
        load_s=load_s,
        load_source=load_source,
        cpu_at_full=median((row.server_cpu_s or 0) / row.duration_s for row in full) / _num_cores(machine),
        http_cpu_s=_http_cpu_s(),
        gpu_texts_per_s=_median(point.texts_per_s for point in Serving(evidence, "gpu", base).base_points()),
    )


def _counts(row: LatencyRow, device: str, dtype: str) -> bool:
    return (
        row.target == SERVICE
        and row.part == "all"
        and row.device.startswith(DEVICES[device])
        and row.dtype == dtype
        and row.scenario not in (LOADS, PEERS)
        and row.num_errors <= MOST_ERRORS * row.num_requests
        and {"texts", "tokens", "adapters"} <= row.batch.keys()
        and row.batch["texts"] > 0
        and row.compute_ms is not None
        and row.tokens_per_s is not None
        and row.texts_per_s > 0
    )


def _features(rows: Sequence[LatencyRow]) -> Floats:
    return np.array([[1.0, row.batch["tokens"], row.batch["adapters"]] for row in rows])


def _batch_s(row: LatencyRow) -> float:
    """Closed loop: from one batch to the next, as the engine never rests. Open loop: the pass of the median text."""
    if row.num_users is not None:
        return row.batch["texts"] / row.texts_per_s
    assert row.compute_ms is not None
    return row.compute_ms.p50 / 1e3


def _fitted(weights: Floats, taken: Floats) -> Floats:
    """Least squares of the relative errors, no factor below 0."""
    factors, _ = nnls(weights / taken[:, None], np.ones(len(taken)))
    return np.asarray(factors, dtype=np.float64)


def _left_out_error(weights: Floats, taken: Floats, index: int) -> float:
    others = np.arange(len(taken)) != index
    predicted = weights[index] @ _fitted(weights[others], taken[others])
    return float(abs(predicted / taken[index] - 1))


def _pace(factors: Floats, rows: Iterable[LatencyRow]) -> Pace:
    fixed_s, token_s, adapter_s = (float(factor) for factor in factors)
    beside = [
        (row.service_ms.mean - row.queue_ms.mean - row.compute_ms.mean) / 1e3
        for row in rows
        if row.service_ms is not None and row.queue_ms is not None and row.compute_ms is not None
    ]
    # as server.batch_budget does: what runs in --batch-ms, and ROUND times as much where many adapters share the batch
    in_time_s = float(Settings.model_fields["batch_ms"].default) / 1e3
    most = int(Settings.model_fields["max_batch_tokens"].default)
    in_time = max(FEWEST_TOKENS, (in_time_s - fixed_s) / max(token_s, 1e-9))
    return Pace(fixed_s, token_s, adapter_s, median(beside), min(most, round(ROUND * in_time)))


def _load(rows: Iterable[LatencyRow], device: str, base: str) -> tuple[float, str]:
    found = [
        row.latency_ms.p50
        for row in rows
        if row.scenario == LOADS
        and row.base == base
        and row.device.startswith(DEVICES[device])
        and row.latency_ms is not None
    ]
    if found:
        return max(found) / 1e3, "rows of scenario adapter-load"
    headline = json.loads(BENCHMARK.read_text(encoding="utf-8"))["headline"]
    return float(headline["load_500th_ms"]) / 1e3, "benchmarks/results/latest.json"


def _http_cpu_s() -> float | None:
    path = BENCHMARK.with_name("service.json")
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("overhead", {}).get("http_cpu_ms")
    return None if found is None else float(found) / 1e3


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _num_cores(machine: str) -> int:
    match = re.search(r"(\d+) cores", machine)
    return int(match[1]) if match else 1
