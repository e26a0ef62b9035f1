"""A whole folder of made-up evidence, in which what is measured of serving is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from decision.base_shape import bases
from decision.cost import Prices
from decision.evidence import About, Evidence
from decision.rows import LatencyRow, MemoryRow, QualityRow, Row, Spread, Writer
from decision.tree import Tree
from tests import measured

ABOUT = About(
    reference="lora-qv-8", task_types={"topic": "trec", "intent": "banking77", "sentiment": "sst2", "pair": "sick"}
)
BYTES = {"lora": 1_400_000, "ia3": 64_536, "prefix": 377_880, "bottleneck": 1_400_000}
"""Of one hot adapter."""
RATES = {"lora": 360, "ia3": 380, "prefix": 340, "bottleneck": 310}
"""Texts a second at which p95 reaches 100 ms, with one hot adapter."""
PRICES = Prices.read()


def served(method: str, num_hot: int, **changes: Any) -> dict[str, Any]:
    """The fields of a row of serving."""
    return {
        "scenario": "planted",
        "case": f"{method}, num_hot {num_hot}",
        "target": "adaptermux",
        "base": bases()["minilm"].id,
        "dtype": "bfloat16",
        "device": "cpu",
        "methods": {method: num_hot},
        "has_random_weights": True,
        "num_registered": 256,
        "num_hot": num_hot,
        "hot_bytes": BYTES.get(method, 0) * num_hot,
        "workload": {},
        "provenance": measured.PROVENANCE,
    } | changes


def latency(method: str, num_hot: int, texts_per_s: float, p95_ms: float, **changes: Any) -> Row:
    spread = Spread(mean=p95_ms / 2, p50=p95_ms / 2, p90=p95_ms, p95=p95_ms, p99=p95_ms, max=p95_ms)
    fields = {
        "rate_per_s": texts_per_s, "duration_s": 10, "num_requests": round(10 * texts_per_s), "num_errors": 0,
        "throughput_per_s": texts_per_s, "texts_per_s": texts_per_s, "tokens_per_s": 20 * texts_per_s,
        "latency_ms": spread,
    }  # fmt: skip
    return LatencyRow.model_validate(served(method, num_hot) | fields | changes)


def memory(num_registered: int, rss_bytes: int, **changes: Any) -> Row:
    fields = {"moment": "load", "rss_bytes": rss_bytes, "resident_adapters": 0, "resident_adapter_bytes": 0}
    return MemoryRow.model_validate(served("lora", 1) | {"num_registered": num_registered} | fields | changes)


def serving(methods: Mapping[str, float] = RATES) -> list[Row]:
    """Three rates of each method at 1, 8 and 64 hot adapters; room for half; changes; many registered."""
    rows: list[Row] = [
        latency(method, num_hot, share * rate * (1 - 0.02 * num_hot**0.5), 100 * share**2)
        for method, rate in methods.items()
        for num_hot in (1, 8, 64)
        for share in (0.25, 0.5, 1.0)
    ]
    for method, rate in methods.items():
        texts = {"texts": {"kind": "fixed", "num_tokens": 64}}
        rate_of_64 = rate / 3
        rows.append(
            latency(method, 16, rate_of_64, 100, workload=texts, tokens_per_s=64 * rate_of_64, case=f"64, {method}")
        )
    for share, p95 in ((2.0, 100.0), (0.5, 150.0)):
        room = {"adapter_bytes": round(share * 64 * BYTES["lora"])}
        rows.append(latency("lora", 64, 300, p95, scenario="cache", case=f"cache_share {share}", service=room))
    for per_s, p95 in ((0, 50.0), (2, 60.0), (10, 90.0)):
        changes = {"load": 10 * per_s} if per_s else {}
        rows.append(latency("lora", 64, 60, p95, scenario="swap", case=f"changes_per_s {per_s}", changes=changes))
    for registered in (10, 100, 1000):
        rows.append(memory(registered, 600 * 2**20 + 20_000 * registered, scenario="scale", case=f"{registered}"))
    return rows


@cache
def quality(sizes: Sequence[int] = (100, 500, 2000)) -> tuple[Row, ...]:
    return tuple(measured.rows(sizes=sizes, num_items=300, num_trials=0))


def evidence() -> Evidence:
    return Evidence.of([*quality(), *serving()], ABOUT)


def tree_of(rows: Sequence[Row], about: About = ABOUT, prices: Prices = PRICES) -> Tree:
    return Tree(Evidence.of(rows, about), prices)


@cache
def tree() -> Tree:
    """Of all of it."""
    return tree_of([*quality(), *serving()])


def write(folder: Path, rows: Sequence[Row], about: Mapping[str, str]) -> Path:
    """A folder of evidence; about: kind of task -> task."""
    folder.mkdir(exist_ok=True)
    with Writer(folder / "rows.jsonl") as writer:
        for row in rows:
            writer.write(row)
    lines = [f'{kind} = "{task}"\n' for kind, task in about.items()]
    (folder / "evidence.toml").write_text("[task_types]\n" + "".join(lines), encoding="utf-8")
    return folder


def small(folder: Path) -> Path:
    """Two of the tasks at two sizes, with all of serving."""
    found = [row for row in quality((100, 500)) if isinstance(row, QualityRow) and row.task in ("trec", "sick")]
    return write(folder, [*found, *serving()], {"topic": "trec", "pair": "sick"})
