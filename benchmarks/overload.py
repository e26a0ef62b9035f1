"""Five times as much is asked as the engine can do, with a deadline: who is answered, and who is told at once.

    python -m benchmarks.overload

The adapters of `benchmarks.flood` on one engine, one thread, Poisson arrivals. In one spell a single adapter asks for
five times the capacity while the others keep to their share, in the other all ask for the same. Latency counts from
`submit`, and counting begins three seconds after the flood. The server's own defaults are used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.flood import NUM_ADAPTERS, Flood, poisson
from benchmarks.timing import machine
from server.errors import Overloaded
from server.jobs import Answer

RESULT = Path(__file__).parent / "results" / "overload.json"
TIMES = 5
SHARE = 0.05
"""Part of the capacity that each quiet adapter asks for beside the flood."""
LIMIT_S = 60
SETTLE_S = 3.0
"""Time at the start of a spell that does not count: the engine has to see how fast it is beside so many who ask."""


@dataclass
class Tally:
    """What became of the texts of some adapters."""

    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    num_failed: int = 0
    """Answered, but with an error: their deadline passed in the line."""

    def note(self, began: float, future: Future[Answer]) -> None:
        if future.exception() is None:
            self.answered_s.append(time.monotonic() - began)
        else:
            self.num_failed += 1

    def record(self, deadline_s: float) -> dict[str, float]:
        num_accepted = len(self.answered_s) + self.num_failed
        return {
            "asked": num_accepted + len(self.refused_s),
            "accepted": num_accepted,
            "accepted_p50_ms": _percentile(self.answered_s, 50),
            "accepted_p99_ms": _percentile(self.answered_s, 99),
            "accepted_in_time": round(sum(x <= deadline_s for x in self.answered_s) / max(1, num_accepted), 4),
            "refused": len(self.refused_s),
            "refused_p99_ms": _percentile(self.refused_s, 99),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15, help="length of a spell (%(default)s)")
    parser.add_argument("--deadline-ms", type=float, default=1000, help="what every text is given (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="format of the base (%(default)s)")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    deadline_s = flags.deadline_ms / 1e3
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flood = Flood(Path(folder), flags.dtype)
        one = [SHARE] * (NUM_ADAPTERS - 1) + [TIMES]
        quiet, loud, num_hanging = spell(flood, one, flags.seconds, deadline_s)
        everybody, last, num_hanging_of_all = spell(
            flood, [TIMES / NUM_ADAPTERS] * NUM_ADAPTERS, flags.seconds, deadline_s
        )
        flood.engine.close()
    record = {
        "schema": 1,
        "command": "python -m benchmarks.overload",
        **machine(),
        "dtype": flags.dtype,
        "deadline_ms": flags.deadline_ms,
        "times_capacity": TIMES,
        "capacity_texts_per_s": round(flood.capacity, 1),
        "one_floods": {"flood": loud.record(deadline_s), "others": quiet.record(deadline_s)},
        "all_flood": {"first_nine": everybody.record(deadline_s), "last": last.record(deadline_s)},
        "never_answered": num_hanging + num_hanging_of_all,
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))
    return 0


def spell(flood: Flood, shares: Sequence[float], seconds: float, deadline_s: float) -> tuple[Tally, Tally, int]:
    """Ask each adapter for its share of the capacity; what became of all but the last, of the last, and of nobody."""
    arrivals = sorted(
        (due, adapter)
        for adapter, share in enumerate(shares)
        for due in poisson(flood.capacity * share, SETTLE_S + seconds, adapter)
    )
    others, last, nobody = Tally(), Tally(), Tally()
    done, num_accepted, start = threading.Semaphore(0), 0, time.monotonic()
    for number, (due, adapter) in enumerate(arrivals):
        time.sleep(max(0.0, start + due - time.monotonic()))
        tally, began = last if adapter == len(shares) - 1 else others, time.monotonic()
        if due < SETTLE_S:
            tally = nobody
        try:
            future = flood.engine.submit(replace(flood.job(adapter, number), deadline=began + deadline_s))
        except Overloaded:
            tally.refused_s.append(time.monotonic() - began)
            continue
        num_accepted += 1
        future.add_done_callback(partial(tally.note, began))
        future.add_done_callback(lambda _: done.release())
    end = time.monotonic() + LIMIT_S
    num_answered = sum(done.acquire(timeout=max(0.0, end - time.monotonic())) for _ in range(num_accepted))
    return others, last, num_accepted - num_answered


def _percentile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    return round(statistics.quantiles(seconds, n=100)[percent - 1] * 1e3, 3) if len(seconds) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main())
