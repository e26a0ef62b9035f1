"""One adapter takes half of all requests: what each bound on a replica's load does with it and with the others."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.replicas.fleet import Fleet
from benchmarks.replicas.load import Scale, Spell, crowded, run_spell
from benchmarks.replicas.router import routing, with_balance


def compare(fleet: Fleet, config: str, scale: Scale, homes: Mapping[str, int], folder: Path) -> dict[str, Any]:
    """All bounds in turn, round by round. homes: where the router sends each adapter when nothing else is asked."""
    spells: dict[int, list[Spell]] = {percent: [] for percent in scale.balances}
    for number in range(scale.num_rounds):
        for percent in scale.balances:
            with routing(with_balance(config, percent), fleet.ports, folder) as router:
                work = crowded(scale.crowded_rate_per_s, len(fleet.adapter_ids), number)
                spells[percent].append(run_spell(fleet, router.url, work, scale.spell_s))
            print(f"a bound of {percent} %, round {number + 1}", file=sys.stderr)
    return {str(percent): _summary(found, homes) for percent, found in spells.items()}


def _summary(spells: Sequence[Spell], homes: Mapping[str, int]) -> dict[str, Any]:
    """Medians over the rounds. hot: the adapter that takes half; cold: the others."""
    cold = range(1, len(spells[0].order))
    return {
        "errors": sum(sum(one.measured.samples.errors().values()) for one in spells),
        "hot_at_home": _median([_share_at_home(one, homes, one.order[:1]) for one in spells], 3),
        "cold_at_home": _median([_share_at_home(one, homes, one.order[1:]) for one in spells], 3),
        "busiest_replica": _median([_busiest(one) for one in spells], 3),
        "hit_rate": _median([one.hit_rate for one in spells], 4),
        "p50_ms": _median([one.latency().p50 for one in spells], 2),
        "p95_ms": _median([one.latency().p95 for one in spells], 2),
        "cold_p95_ms": _median([one.latency(cold).p95 for one in spells], 2),
    }


def _share_at_home(spell: Spell, homes: Mapping[str, int], adapter_ids: Sequence[str]) -> float:
    num_at_home = sum(spell.requests[homes[adapter_id]][adapter_id] for adapter_id in adapter_ids)
    return num_at_home / sum(one[adapter_id] for one in spell.requests for adapter_id in adapter_ids)


def _busiest(spell: Spell) -> float:
    """Part of all requests that the busiest replica answers."""
    totals = [one.total() for one in spell.requests]
    return max(totals) / sum(totals)


def _median(values: Sequence[float], digits: int) -> float:
    return round(statistics.median(values), digits)
