"""One adapter is asked ten times as often as its share: what that costs the others.

    python -m benchmarks.flood

Ten adapters of four methods on one engine, one thread. Arrivals are Poisson, whatever the engine does (open loop), and
latency counts from the moment a text was due. Calm and flooded spells alternate in one process; the figure is the
95th percentile over the adapters that keep to their share. The server's own defaults are used.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.material import job as job_of
from benchmarks.material import make_folders, skewed_texts
from benchmarks.timing import machine
from server import adapter_folder, base_model
from server.engine import ThreadEngine
from server.errors import Overloaded
from server.forward import Forward, load_base
from server.jobs import Job
from server.store import Store

RESULT = Path(__file__).parent / "results" / "flood.json"
METHODS = ("lora", "ia3", "prefix", "bottleneck")
NUM_ADAPTERS, TIMES = 10, 10
LOAD = 0.5
"""Part of the engine's capacity that all adapters use together in a calm spell."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spells", type=int, default=4, help="calm and flooded spells each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=12, help="length of a spell (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="format of the base (%(default)s)")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flood = Flood(Path(folder), flags.dtype)
        calm, flooded = [], []
        for number in range(flags.spells):
            calm.append(flood.spell(flags.seconds, 1, number))
            flooded.append(flood.spell(flags.seconds, TIMES, number))
            print(f"spell {number + 1} of {flags.spells}: {calm[-1]:.1f} and {flooded[-1]:.1f} ms", file=sys.stderr)
        flood.engine.close()
    record = {
        "schema": 1,
        "command": "python -m benchmarks.flood",
        **machine(),
        "dtype": flags.dtype,
        "capacity_texts_per_s": round(flood.capacity, 1),
        "calm_p95_ms": round(statistics.median(calm), 1),
        "flooded_p95_ms": round(statistics.median(flooded), 1),
        "flooded_vs_calm_p95": round(statistics.median(f / c for f, c in zip(flooded, calm, strict=True)), 3),
        "spells": {"calm_p95_ms": [round(x, 1) for x in calm], "flooded_p95_ms": [round(x, 1) for x in flooded]},
        "refused_of_the_flood": flood.num_refused,
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))
    return 0


class Flood:
    """A running engine with its adapters."""

    def __init__(self, root: Path, dtype: str) -> None:
        base = load_base(base_model.EMBEDDED_ID, "cpu", dtype)
        store = Store(base)
        names = [name for method in METHODS for name in make_folders(root, method, 3)]
        self._adapters = [store.load(adapter_folder.read(root, name, base)).key for name in names[:NUM_ADAPTERS]]
        self._texts = skewed_texts(512)
        self.engine = ThreadEngine(Forward(base), store)
        self.engine.start()
        self.num_refused = 0
        self.capacity = 0.0
        for _ in range(2):  # the first warms up
            began = time.monotonic()
            futures = [self.engine.submit(self.job(i % NUM_ADAPTERS, i)) for i in range(len(self._texts))]
            for future in futures:
                future.result()
            self.capacity = len(futures) / (time.monotonic() - began)

    def spell(self, seconds: float, times: int, seed: int) -> float:
        """Ask all adapters, the last one `times` as often as the others; their 95th percentile without it, in ms."""
        share = self.capacity * LOAD / NUM_ADAPTERS
        arrivals = sorted(
            (due, adapter)
            for adapter in range(NUM_ADAPTERS)
            for due in poisson(share * (times if adapter == NUM_ADAPTERS - 1 else 1), seconds, seed * 100 + adapter)
        )
        latencies: list[float] = []
        done = threading.Semaphore(0)
        began, num_sent = time.monotonic(), 0
        for number, (due, adapter) in enumerate(arrivals):
            time.sleep(max(0.0, began + due - time.monotonic()))
            try:
                future = self.engine.submit(self.job(adapter, number))
            except Overloaded:
                self.num_refused += 1
                continue
            num_sent += 1
            if adapter < NUM_ADAPTERS - 1:
                future.add_done_callback(partial(_note, latencies, began + due))
            future.add_done_callback(lambda _: done.release())
        for _ in range(num_sent):
            done.acquire()
        return statistics.quantiles(latencies, n=20)[-1] * 1e3

    def job(self, adapter: int, number: int) -> Job:
        adapter_id, _, version = self._adapters[adapter].partition("@")
        tokens = job_of(self._texts[number % len(self._texts)])
        return Job(adapter_id, version, tokens.token_ids, tokens.type_ids)


def _note(latencies: list[float], due: float, _: object) -> None:
    latencies.append(time.monotonic() - due)


def poisson(rate: float, seconds: float, seed: int) -> Sequence[float]:
    rng, due, found = random.Random(seed), 0.0, []
    while (due := due + rng.expovariate(rate)) < seconds:
        found.append(due)
    return found


if __name__ == "__main__":
    sys.exit(main())
