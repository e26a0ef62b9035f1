"""The simulation held against what was measured: load tests of one replica, and the live run of three."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from benchmarks.scaling.fleet import Layout, simulate
from benchmarks.scaling.policies import RANDOM
from benchmarks.scaling.setting import Setting
from benchmarks.scaling.theory import zipf
from benchmarks.scaling.traffic import poisson, traffic
from decision.evidence import Evidence
from decision.rows import LatencyRow

NUM_REQUESTS = 20_000
SCENARIOS = ("cache", "scale", "methods", "soak", "capacity", "noisy-neighbour", "burst")


@dataclass(frozen=True, slots=True)
class Compared:
    """One case of a load test. rate_per_s: None in a closed loop. p95: within the service. None: not told."""

    scenario: str
    case: str
    rate_per_s: float | None
    num_users: int | None
    measured_per_s: float
    simulated_per_s: float
    measured_p95_ms: float | None
    simulated_p95_ms: float
    measured_hit_rate: float | None
    simulated_hit_rate: float


def compared(setting: Setting, evidence: Evidence) -> list[Compared]:
    """Cases with adapters of four methods and the usual texts, medians over their repeats."""
    cases: dict[tuple[str, str, float | None, int | None], list[LatencyRow]] = {}
    for row in evidence.latencies:
        if _is_usable(setting, row):
            cases.setdefault((row.scenario, row.case, row.rate_per_s, row.num_users), []).append(row)
    return [_compare(setting, rows) for _, rows in sorted(cases.items(), key=str)]


def _is_usable(setting: Setting, row: LatencyRow) -> bool:
    measured = setting.measured
    return (
        (row.base, row.dtype, row.provenance.machine) == (measured.base, measured.dtype, measured.machine)
        and row.target == "adaptermux"
        and row.part == "all"
        and row.scenario in SCENARIOS
        and len(row.methods) > 1
        and not {"texts", "flood", "burst"} & row.workload.keys()
        and row.num_errors <= row.num_requests / 1000
    )


def _compare(setting: Setting, rows: list[LatencyRow]) -> Compared:
    row = rows[0]
    exponent = float(row.workload.get("zipf_s", setting.exponent))
    shares, rng = zipf(row.num_hot, exponent), np.random.default_rng(setting.seed)
    room = _room(row)
    layout = Layout(setting.measured.pace, RANDOM, 1, room, setting.measured.load_s, seed=setting.seed)
    if row.rate_per_s is None:  # users take their time too: what they see beyond what the service tells
        beside = [
            one.latency_ms.mean - one.queue_ms.mean - one.compute_ms.mean
            for one in rows
            if one.latency_ms and one.queue_ms and one.compute_ms
        ]
        layout = replace(layout, pace=replace(layout.pace, beside_s=median(beside) / 1e3))
    size = max(200, int(NUM_REQUESTS * setting.size))
    came_s = poisson(row.rate_per_s or 1.0, size, rng)
    asked = traffic(came_s, shares, setting.measured.mean_tokens, rng)
    outcome = simulate(layout, asked, shares, num_users=row.num_users)
    spent_s = float(outcome.came_s[-1] - outcome.came_s[0])
    own = layout.pace.beside_s - setting.measured.pace.beside_s
    return Compared(
        scenario=row.scenario,
        case=row.case,
        rate_per_s=row.rate_per_s,
        num_users=row.num_users,
        measured_per_s=median(one.throughput_per_s for one in rows),
        simulated_per_s=len(outcome.came_s) / spent_s,
        measured_p95_ms=_median(one.service_ms.p95 for one in rows if one.service_ms),
        simulated_p95_ms=outcome.p95_ms() - own * 1e3,
        measured_hit_rate=_median(
            1 - one.adapter_misses / one.num_requests for one in rows if one.adapter_misses is not None
        ),
        simulated_hit_rate=outcome.hit_rate(),
    )


def _room(row: LatencyRow) -> int:
    """Adapters of the mean size that fit into the service's memory."""
    most = row.service.get("adapter_bytes")
    if not isinstance(most, int) or not row.hot_bytes:
        return row.num_hot
    return min(row.num_hot, int(most / (row.hot_bytes / row.num_hot)))


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None
