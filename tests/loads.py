"""Rows and raw samples as a load test would write them, made up from a seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from decision.rows import LatencyRow, MemoryRow, Provenance, Spread
from loadtest.samples import FIELDS
from loadtest.timeline import Timeline

COMMAND = "adaptermux-loadtest run made-up"
START_S = 1_795_000_000.0
MIB = 2**20


def spread(values: Sequence[float]) -> Spread:
    p50, p90, p95, p99 = map(float, np.percentile(values, [50, 90, 95, 99]))
    return Spread(mean=float(np.mean(values)), p50=p50, p90=p90, p95=p95, p99=p99, max=float(np.max(values)))


def shared(case: str, **others: Any) -> dict[str, Any]:
    """What the rows of a case have in common."""
    about = {
        "scenario": "made-up", "case": case, "target": "adaptermux", "base": "MiniLM", "dtype": "bfloat16",
        "device": "cpu", "methods": {"lora": 8}, "has_random_weights": True, "num_registered": 64, "num_hot": 8,
        "workload": {"seed": 0},
        "provenance": Provenance(
            machine="AMD EPYC, 2 cores", versions={"python": "3.11", "torch": "2.13.0"}, commit="0123456789ab",
            command=COMMAND, created="2026-11-22T09:00:00+00:00",
        ),
    }  # fmt: skip
    return about | others


def latency(case: str, middle_ms: float = 20.0, **others: Any) -> LatencyRow:
    """A case whose median latency is about this."""
    generator = np.random.default_rng([len(case), round(middle_ms * 100), others.get("repeat", 0)])
    latencies = generator.lognormal(np.log(middle_ms), 0.5, 400)
    told = {
        "latency_ms": spread(list(latencies)), "queue_ms": spread(list(latencies * 0.3)),
        "compute_ms": spread(list(latencies * 0.4)), "tokenize_ms": spread(list(latencies * 0.02)),
        "send_delay_ms": spread([0.01]), "batch": {"texts": 6.5, "tokens": 130.0, "adapters": 4.2, "methods": 2.9},
        "num_users": None if "rate_per_s" in others else 16, "duration_s": 10.0, "num_requests": 400, "num_errors": 0,
        "throughput_per_s": 16_000 / latencies.mean(), "texts_per_s": 16_000 / latencies.mean(), "server_cpu_s": 9.1,
    }  # fmt: skip
    return LatencyRow(**(shared(case) | told | others))


def memory(case: str, load_mib: float = 700.0, **others: Any) -> list[MemoryRow]:
    """Idle and under load."""
    growth = others.pop("growth_bytes_per_h", None)
    facts = shared(case, **others)
    tiers = {"resident_adapters": 64, "resident_adapter_bytes": 30 * MIB, "host_adapter_bytes": 0}
    return [
        MemoryRow(**facts, **tiers, moment="idle", rss_bytes=500 * MIB, anonymous_bytes=300 * MIB),
        MemoryRow(**facts, **tiers, moment="load", rss_bytes=round(load_mib * MIB),
                  anonymous_bytes=round((load_mib - 200) * MIB), growth_bytes_per_h=growth),
    ]  # fmt: skip


def methods(repeats: int = 2) -> Iterator[LatencyRow | MemoryRow]:
    """Thirty cases: two types of number, five mixes of methods, three numbers of hot adapters."""
    mixes = {"lora": 1.0, "ia3": 0.9, "prefix": 1.1, "bottleneck": 1.05, "lora+ia3+prefix+bottleneck": 1.15}
    for repeat in range(repeats):
        for (dtype, speed), (mix, cost), hot in product(
            {"float32": 30.0, "bfloat16": 20.0}.items(), mixes.items(), (1, 8, 64)
        ):
            case = f"{dtype}, {mix}, num_hot {hot}"
            yield latency(case, speed * cost * (1 + 0.03 * np.log2(hot)), repeat=repeat, dtype=dtype, num_hot=hot)
            yield from memory(case, 700 + hot * 2, repeat=repeat, dtype=dtype, num_hot=hot)


def capacity(cases: Mapping[str, float], limit_ms: float = 50.0, repeats: int = 1) -> Iterator[LatencyRow]:
    """cases: the rate of each at which it is full."""
    for repeat, (case, full) in product(range(repeats), cases.items()):
        for rate in (80.0, 160.0, 320.0, 226.3):
            busy = min(rate / full, 0.98)
            yield latency(case, 8 / (1 - busy), repeat=repeat, rate_per_s=rate, limit_p95_ms=limit_ms,
                          num_requests=round(rate * 10), throughput_per_s=rate)  # fmt: skip


def write_samples(
    folder: Path, case: str, rate_per_s: float = 60.0, seconds: float = 10.0, errors: Mapping[str, float] | None = None,
    number: int = 1, repeat: int = 0,
) -> None:  # fmt: skip
    """Into a run's folder. errors: kind -> share of requests."""
    generator = np.random.default_rng([number, repeat])
    own = folder / "samples" / f"{number:03}-{repeat}"
    own.mkdir(parents=True)
    kinds = errors or {}
    records = np.zeros(round(rate_per_s * seconds), FIELDS)
    records["due_s"] = START_S + np.sort(generator.random(len(records))) * seconds
    records["latency_ms"] = generator.lognormal(3, 0.5, len(records))
    shares = [1 - sum(kinds.values()), *kinds.values()]
    records["error"] = generator.choice(len(shares), len(records), p=shares)
    records.tofile(own / "1.samples")
    (own / "1.errors.json").write_text(json.dumps([*kinds]), encoding="utf-8")
    looks = [START_S + second for second in range(round(seconds))]
    Timeline(
        scenario="made-up", target="adaptermux", case=case, repeat=repeat, rate_per_s=rate_per_s, command=COMMAND,
        start_s=START_S, end_s=START_S + seconds, at_s=looks,
        rss_bytes=[round((700 + 0.01 * place) * MIB) for place in range(len(looks))],
        resident_adapter_bytes=[30 * MIB] * len(looks),
    ).write(own)  # fmt: skip
