"""Replicas are restarted one after the other while they are asked, as an upgrade does."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.replicas.fleet import Fleet
from benchmarks.replicas.load import Scale, popularity, sending, workload
from benchmarks.replicas.router import routing

LONGEST_S = 1800.0


def restart_all(fleet: Fleet, config: str, scale: Scale, folder: Path) -> dict[str, Any]:
    """Each is asked to stop, started again, and waited for; the load lasts as long as that."""
    order, enough = popularity(fleet.adapter_ids), threading.Event()
    durations, codes = [], []
    with routing(config, fleet.ports, folder) as router:
        work = workload(scale.rate_per_s, len(order), 0)
        with sending(router.url, order, work, LONGEST_S, enough) as sent:
            try:
                for replica in fleet.replicas:
                    began = time.monotonic()
                    codes.append(replica.stop())
                    router.wait_for(len(fleet.replicas) - 1)
                    replica.start()
                    replica.wait_until_ready()
                    router.wait_for(len(fleet.replicas))
                    durations.append(time.monotonic() - began)
            finally:
                is_over = sent.done()
                enough.set()
            measured = sent.result()
        spread = measured.samples.answered().spread("latency_ms")
    if is_over or spread is None:
        raise SystemExit("the load was over before the replicas were restarted; this is a bug")
    return {
        "requests": len(measured.samples),
        "errors": sum(measured.samples.errors().values()),
        "error_kinds": measured.samples.errors(),
        "exit_codes": codes,
        "seconds_each": [round(one, 1) for one in durations],
        "p50_ms": spread.p50,
        "p95_ms": spread.p95,
        "max_ms": spread.max,
    }
