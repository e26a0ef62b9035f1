"""The sizing table of docs/deploy.md, from the evidence of load tests."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median

from decision.rows import LatencyRow, MemoryRow, read

EVIDENCE = Path(__file__).parent.parent / "decision" / "evidence" / "serving.jsonl"
SCENARIO = "methods"
"""Each method alone and all mixed, fully loaded."""

Key = tuple[str, str, str, str, str]


def sizing_table() -> str:
    """Of the cases with the most hot adapters: what an adapter and the process take, and what one replica answers."""
    rows = [
        row
        for row in read(EVIDENCE)
        if isinstance(row, LatencyRow | MemoryRow) and row.scenario == SCENARIO and row.target == "adaptermux"
    ]
    most = max(row.num_hot for row in rows)
    throughput: dict[Key, list[float]] = defaultdict(list)
    adapter_bytes: dict[Key, float] = {}
    process_bytes: dict[Key, float] = defaultdict(float)
    for row in rows:
        if row.num_hot != most:
            continue
        methods = " + ".join(sorted(row.methods))
        key = (row.base.rpartition("/")[2], row.provenance.machine, row.dtype, methods, row.device)
        if isinstance(row, LatencyRow):
            throughput[key].append(row.texts_per_s)
        if row.hot_bytes is not None:
            adapter_bytes[key] = row.hot_bytes / row.num_hot
        if isinstance(row, MemoryRow) and row.anonymous_bytes is not None:
            own = row.anonymous_bytes - (row.resident_adapter_bytes or 0)
            process_bytes[key] = max(process_bytes[key], own)
    lines = [
        "| base | machine | dtype | methods | texts/s of a replica | an adapter | 1,000 adapters | process beside |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(throughput):
        base, machine, dtype, methods, device = key
        one = adapter_bytes.get(key)
        lines.append(
            f"| {base} | {machine}{'' if device == 'cpu' else f', {device}'} | {dtype} | {methods} "
            f"| {median(throughput[key]):.0f} | {_kib(one)} | {_mib(one and one * 1000)} | {_mib(process_bytes[key])} |"
        )
    return "\n".join(lines) + "\n"


def _kib(count: float | None) -> str:
    return f"{count / 2**10:,.0f} KiB" if count else "–"


def _mib(count: float | None) -> str:
    return f"{count / 2**20:,.0f} MiB" if count else "–"
