"""Three replicas behind the chart's router: what affinity, a death, a restart and a hot adapter do.

    make bench-replicas

Three server processes with one thread each, and HAProxy with the configuration that the chart renders, in which only
addresses are others. 300 adapters, of which each replica has room for 40 %; nothing is loaded before it is asked for.
Locust asks at random times (open loop), the adapter of rank r in proportion to 1/r. Prometheus looks at the replicas
in a part of its own, with the configuration of compose.yaml and the chart's alerts. Prints tables and writes
`benchmarks/results/replicas.json`. Fails if one of the promises does not hold.

All of it runs on one machine, so that a replica that has more to do takes processor time from the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.replicas import affinity, agreement, bound, death, restart
from benchmarks.replicas.fleet import Fleet
from benchmarks.replicas.load import ZIPF_S, Scale
from benchmarks.replicas.router import HAPROXY, balance_of, chart_config, routing
from benchmarks.replicas.scraper import PROMETHEUS
from decision.provenance import facts
from docs.replicas import RESULT, promises, tables
from loadtest.service import make_adapters

COMMAND = "python -m benchmarks.replicas"
NUM_ADAPTERS, NUM_REPLICAS, ROOM = 300, 3, 0.4
WEIGHTS = "adapter_model.safetensors"
PARTS = ("affinity", "bound", "agreement", "death", "restart")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file of the results (%(default)s)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, the others as the file has them")
    parser.add_argument("--rounds", type=int, default=Scale.num_rounds, help="of what is compared (%(default)s)")
    parser.add_argument("--seconds", type=float, default=Scale.spell_s, help="of load at a time (%(default)s)")
    parser.add_argument("--base", help="base model: a folder or a hub id (the server's default)")
    flags = parser.parse_args()
    scale = Scale(num_rounds=flags.rounds, spell_s=flags.seconds)
    record: dict[str, Any] = {}
    if flags.only and flags.output.exists():
        record = json.loads(flags.output.read_text(encoding="utf-8"))
    for found in measure(scale, flags.base, flags.only or PARTS):
        record |= found
        flags.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(tables(record))
    broken = [claim for claim, holds in promises(record).items() if not holds]
    for claim in broken:
        print(f"does not hold: {claim}", file=sys.stderr)
    return 1 if broken else 0


def measure(scale: Scale, base: str | None, parts: Collection[str]) -> Iterator[dict[str, Any]]:
    """What the record gets: the circumstances, then one part after the other."""
    config = chart_config(NUM_REPLICAS)
    with TemporaryDirectory(prefix="adaptermux-replicas-") as scratch:
        folder = Path(scratch)
        adapters = folder / "adapters"
        make_adapters(adapters, ["lora"], NUM_ADAPTERS, base, {})
        num_bytes = sum(path.stat().st_size for path in adapters.glob(f"*/{WEIGHTS}"))
        yield {
            "schema": 1,
            **facts(COMMAND),
            "engines": {"haproxy": _version(HAPROXY, "-v"), "prometheus": _version(PROMETHEUS, "--version")},
            "num_replicas": NUM_REPLICAS,
            "num_adapters": NUM_ADAPTERS,
            "adapter_bytes": num_bytes,
            "room": ROOM,
            "zipf_s": ZIPF_S,
            "rate_per_s": scale.rate_per_s,
            "crowded_rate_per_s": scale.crowded_rate_per_s,
            "spell_s": scale.spell_s,
            "rounds": scale.num_rounds,
            "balance_percent": balance_of(config),
        }
        settings: dict[str, str | int] = {
            "device": "cpu",
            "threads": 1,
            "preload": 0,
            "adapter-bytes": round(num_bytes * ROOM),
        }
        if base is not None:
            settings["base"] = base
        with Fleet(adapters, folder, settings, NUM_REPLICAS) as fleet:
            with routing(config, fleet.ports, folder) as router:
                homes = fleet.homes(router.url)
            work: dict[str, Callable[[], dict[str, Any]]] = {
                "affinity": lambda: affinity.compare(fleet, config, scale, folder),
                "bound": lambda: bound.compare(fleet, config, scale, homes, folder),
                "agreement": lambda: agreement.scrape(fleet, config, scale, folder),
                "death": lambda: death.kill_one(fleet, config, scale, folder),
                "restart": lambda: restart.restart_all(fleet, config, scale, folder),
            }
            for part in PARTS:
                if part in parts:
                    print(f"part: {part}", file=sys.stderr)
                    yield {part: work[part]()}


def _version(program: str | None, flag: str) -> str:
    """The number that a program gives as its own."""
    if program is None:
        return "none"
    said = subprocess.run([program, flag], capture_output=True, text=True, check=True)
    words = (said.stdout + said.stderr).split()
    return words[words.index("version") + 1].rstrip(",")


if __name__ == "__main__":
    sys.exit(main())
