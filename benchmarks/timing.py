"""Contenders timed in turn in one process, so that a noisy machine is noisy for all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "peft")
Contender = Callable[[int], object]
"""Called with the number of the round."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Process CPU seconds. alone: of every contender in every round. pairs: of two that ran one behind the other."""

    alone: Mapping[str, list[float]]
    pairs: Mapping[str, list[tuple[float, float]]]

    def speed(self, pair: str) -> dict[str, float]:
        """How many times as fast the first of a pair is as the second: the median over rounds, and the quartiles."""
        low, median, high = statistics.quantiles((theirs / mine for mine, theirs in self.pairs[pair]), n=4)
        return {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}


def interleave(contenders: Mapping[str, Contender], pairs: Mapping[str, tuple[str, str]], rounds: int) -> Timings:
    """Time all contenders in turn, round by round; the two of a pair one behind the other, in either order in turn.

    A round before the others warms up.
    """
    alone: dict[str, list[float]] = {name: [] for name in contenders}
    paired: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    in_pairs = {name for pair in pairs.values() for name in pair}

    def timed(name: str, number: int) -> float:
        began = time.process_time()
        contenders[name](number)
        took = time.process_time() - began
        if number > 0:
            alone[name].append(took)
        return took

    for number in range(rounds + 1):
        for pair, (mine, theirs) in pairs.items():
            order = (mine, theirs) if number % 2 else (theirs, mine)
            took = {name: timed(name, number) for name in order}
            if number > 0:
                paired[pair].append((took[mine], took[theirs]))
        for name in contenders.keys() - in_pairs:
            timed(name, number)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return Timings(alone, paired)


def machine() -> dict[str, object]:
    """Where and with what a benchmark ran."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in LIBRARIES},
    }


def resident_kib() -> int:
    """Memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
