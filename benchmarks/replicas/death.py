"""A replica is killed while it is asked: what is lost, and what moves."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from benchmarks.replicas.fleet import Fleet
from benchmarks.replicas.load import Scale, popularity, sending, workload
from benchmarks.replicas.router import routing

VICTIM = 1


def kill_one(fleet: Fleet, config: str, scale: Scale, folder: Path) -> dict[str, Any]:
    """In the middle of a load; then start it again. Homes are where adapters go when nothing else is asked."""
    order = popularity(fleet.adapter_ids)
    victim, others = fleet.replicas[VICTIM], [one for one in fleet.replicas if one.number != VICTIM]
    with routing(config, fleet.ports, folder) as router:
        homes = fleet.homes(router.url)
        counted = router.count("redispatch_warnings_total"), router.count("retry_warnings_total")
        with sending(router.url, order, workload(scale.rate_per_s, len(order), 0), scale.spell_s) as sent:
            time.sleep(scale.spell_s / 3)
            victim.kill()
            killed_s = time.time()
            router.wait_for(len(others))
            seen_s = time.time() - killed_s
            samples = sent.result().samples
        num_redispatched = router.count("redispatch_warnings_total") - counted[0]
        num_retried = router.count("retry_warnings_total") - counted[1]
        homes_without = fleet.homes(router.url)
        victim.start()
        victim.wait_until_ready()
        router.wait_for(len(fleet.replicas))
        homes_again = fleet.homes(router.url)
    moved = {adapter_id for adapter_id in order if homes[adapter_id] != homes_without[adapter_id]}
    orphans = {adapter_id for adapter_id, number in homes.items() if number == VICTIM}
    ranks = [order.index(adapter_id) for adapter_id in orphans]
    after = samples.between(killed_s, killed_s + seen_s).spread("latency_ms")
    return {
        "requests": len(samples),
        "asked_of_its_adapters_after": len(samples.of(ranks).between(killed_s, math.inf)),
        "errors": sum(samples.errors().values()),
        "error_kinds": samples.errors(),
        "asked_again": round(num_redispatched + num_retried),
        "seen_after_s": round(seen_s, 2),
        "p95_ms_until_seen": after.p95 if after is not None else None,
        "max_ms_until_seen": after.max if after is not None else None,
        "adapters_it_had": len(orphans),
        "adapters_moved": len(moved),
        "only_its_own_moved": moved == orphans,
        "moved_to": {str(one.number): sum(homes_without[each] == one.number for each in moved) for one in others},
        "came_back": homes_again == homes,
    }
