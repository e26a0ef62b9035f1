"""Contenders timed in turn in one process, so that a noisy machine is noisy for all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "peft")
Contender = Callable[[int], object]
"""Called with the number of the round."""


def interleave(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Process CPU seconds of every contender in every round; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            began = time.process_time()
            run(number)
            if number > 0:
                seconds[name].append(time.process_time() - began)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return seconds


def speed(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast as theirs mine is: the median over rounds."""
    return round(statistics.median(other / own for own, other in zip(mine, theirs, strict=True)), 3)


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
