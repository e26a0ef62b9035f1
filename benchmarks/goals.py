"""What the project wants to reach on a card, and whether a measurement reaches it.

`benchmarks.gpu_check` measures ratios of passes, `benchmarks.device` what many resident adapters and loads cost.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIX_VS_BASE, BASE_VS_MATRIX_RATE = 0.90, 0.70
VS_ADAPTER_NAMES, VS_SET_ADAPTER = 8.0, 20.0
MANY_VS_FEW_RESIDENT = 1.05
LOAD_MS = {"host memory": 2.0, "disk": 30.0}
LARGE, FULL = "llama-1b", "128 tokens each"
"""The shape whose base and loads have goals of their own, and the texts with which its batches are full."""
RATIOS = {
    "mix_vs_base": MIX_VS_BASE,
    "lora_vs_peft_adapter_names": VS_ADAPTER_NAMES,
    "lora_vs_peft_set_adapter": VS_SET_ADAPTER,
}


@dataclass(frozen=True)
class Goal:
    """A figure and its bound. is_met: whether the figure is on the right side of it."""

    name: str
    figure: float
    bound: str
    is_met: bool


def at_least(name: str, figure: float, bound: float) -> Goal:
    return Goal(name, round(figure, 4), f"at least {bound:g}", figure >= bound)


def at_most(name: str, figure: float, bound: float) -> Goal:
    return Goal(name, round(figure, 4), f"at most {bound:g}", figure <= bound)


def of_speeds(speeds: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """The goals of `benchmarks.gpu_check`. speeds: by base and texts, as its report has them."""
    found = []
    for case, speed in speeds.items():
        if not RATIOS.keys() <= speed["ratios"].keys():  # a small batch
            continue
        for name, bound in RATIOS.items():
            found.append(at_least(f"{case}: {name}", speed["ratios"][name]["median"], bound))
        if LARGE in case and FULL in case:
            found.append(at_least(f"{case}: base_vs_matrix_rate", speed["base_vs_matrix_rate"], BASE_VS_MATRIX_RATE))
    return found


def of_rows(rows: Iterable[Mapping[str, Any]], many: str, few: str) -> list[Goal]:
    """The goals of `benchmarks.device`, by the median pass and the median load. many, few: cases that are compared."""
    medians = {(row["base"], row["case"]): row["latency_ms"]["p50"] for row in rows if row["kind"] == "latency"}
    found = []
    for (base, case), median in medians.items():
        if case == many and (base, few) in medians:
            found.append(at_most(f"{base}: {many}, times {few}", median / medians[base, few], MANY_VS_FEW_RESIDENT))
        for tier, bound in LOAD_MS.items():
            if LARGE in base and case == f"lora from {tier}":
                found.append(at_most(f"{base}: {case}, ms", median, bound))
    return found


def tell(goals: Sequence[Goal]) -> None:
    """A line for each."""
    for goal in goals:
        print(f"{'met' if goal.is_met else 'MISSED'}: {goal.name}: {goal.figure}, {goal.bound}", file=sys.stderr)
