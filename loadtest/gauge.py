"""What a service holds and does, looked at now and then while it works."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import psutil

from loadtest.errors import LoadTestError
from loadtest.service import Service

RESIDENT, RESIDENT_BYTES = "adaptermux_resident_adapters", "adaptermux_adapter_resident_bytes"
HOST_BYTES = "adaptermux_adapter_host_bytes"


@dataclass(frozen=True)
class Reading:
    """At one moment. Memory is in bytes and None where it cannot be seen; metrics: by name, summed over labels."""

    at_s: float
    """Unix time."""
    metrics: dict[str, float]
    cpu_s: float | None = None
    rss_bytes: int | None = None
    anonymous_bytes: int | None = None
    device_bytes: int | None = None


def read(service: Service) -> Reading:
    """Raises LoadTestError if the service has gone."""
    try:
        metrics = service.remote.metrics()
    except LoadTestError as error:
        if "answered 404" not in str(error):
            raise
        metrics = {}  # another service, that has none
    if service.pid is None:
        return Reading(time.time(), metrics)
    try:
        processes = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
        times = [process.cpu_times() for process in processes]
        rss = sum(process.memory_info().rss for process in processes)
    except psutil.Error as error:
        raise LoadTestError(f"the server's process has ended: {error}") from error
    pids = [process.pid for process in processes]
    return Reading(
        at_s=time.time(),
        metrics=metrics,
        cpu_s=sum(one.user + one.system for one in times),
        rss_bytes=rss,
        anonymous_bytes=_anonymous_bytes(pids),
        device_bytes=_device_bytes(pids),
    )


class Gauge:
    """Reads a service every `every_s` in a thread of its own, between `start` and `stop`."""

    def __init__(self, service: Service, every_s: float = 1.0) -> None:
        self._service = service
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.readings: list[Reading] = []
        self.trouble: str | None = None
        """Why the last look failed; one that is followed by others does not matter."""

    def __enter__(self) -> Self:
        self.readings.append(read(self._service))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.readings.append(read(self._service))
                self.trouble = None
            except LoadTestError as error:
                self.trouble = str(error)


def growth_bytes_per_h(readings: Sequence[Reading]) -> float | None:
    """Of resident memory: the slope of a straight line through the second half of the readings."""
    half = [(one.at_s, one.rss_bytes) for one in readings[len(readings) // 2 :] if one.rss_bytes is not None]
    if len(half) < 3:
        return None
    at_s, rss = np.array(half, dtype=np.float64).T
    return float(np.polyfit(at_s - at_s[0], rss, 1)[0] * 3600)


def _anonymous_bytes(pids: Sequence[int]) -> int | None:
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    return total


def _device_bytes(pids: Sequence[int]) -> int | None:
    """Of NVIDIA's accelerators, as the driver tells."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(",") for line in found.splitlines() if line.count(",") == 1]
    mebibytes = [size.strip() for pid, size in rows if pid.strip().isdigit() and int(pid) in pids]
    return sum(int(size) for size in mebibytes if size.isdigit()) * 2**20 if mebibytes else None
