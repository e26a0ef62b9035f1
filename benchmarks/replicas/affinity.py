"""Affinity against chance: how much of what is asked is in memory when the router goes by the adapter."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.replicas.fleet import Fleet
from benchmarks.replicas.load import Scale, Spell, run_spell, workload
from benchmarks.replicas.router import at_random, routing

AFFINITY, RANDOM = "affinity", "random"


def compare(fleet: Fleet, config: str, scale: Scale, folder: Path) -> dict[str, dict[str, Any]]:
    """Both in turn, round by round. config: of the router, as the chart renders it."""
    configs = {AFFINITY: config, RANDOM: at_random(config)}
    spells: dict[str, list[Spell]] = {name: [] for name in configs}
    for number in range(scale.num_rounds):
        for name, text in configs.items():
            with routing(text, fleet.ports, folder) as router:
                work = workload(scale.rate_per_s, len(fleet.adapter_ids), number)
                spells[name].append(run_spell(fleet, router.url, work, scale.spell_s))
            print(f"{name}, round {number + 1}: {spells[name][-1].hit_rate:.3f} in memory", file=sys.stderr)
    return {name: _summary(found) for name, found in spells.items()}


def _summary(spells: Sequence[Spell]) -> dict[str, Any]:
    """Medians over the rounds; residency: of the last one, on each replica."""
    return {
        "requests": sum(len(one.measured.samples) for one in spells),
        "errors": sum(sum(one.measured.samples.errors().values()) for one in spells),
        "hit_rate": round(statistics.median(one.hit_rate for one in spells), 4),
        "hit_rate_rounds": [round(one.hit_rate, 4) for one in spells],
        "residency": [round(share, 3) for share in spells[-1].residency],
        "p50_ms": round(statistics.median(one.latency().p50 for one in spells), 2),
        "p95_ms": round(statistics.median(one.latency().p95 for one in spells), 2),
    }
