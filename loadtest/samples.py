"""What became of every request: one fixed-size record each, written as they come, in the process that sent it."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from decision.rows import Spread

FIELDS = np.dtype(
    [
        ("due_s", "<f8"),  # Unix time at which it was to be sent
        ("send_delay_ms", "<f4"),  # from then until it was
        ("latency_ms", "<f4"),  # from then until its answer was there
        ("queue_ms", "<f4"),  # as the service tells; not a number if it does not
        ("compute_ms", "<f4"),
        ("tokenize_ms", "<f4"),
        ("service_ms", "<f4"),  # the whole time within the service
        ("num_tokens", "<u4"),
        ("num_texts", "<u2"),
        ("adapter", "<u2"),  # its rank among the hot ones
        ("error", "<u2"),  # 0: answered rightly; else its place in the errors file, from 1
    ]
)
_PACKER = struct.Struct("<d6fIHHH")
assert _PACKER.size == FIELDS.itemsize
Records = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Timings:
    """What a service tells of one request; not a number where it does not."""

    queue_ms: float
    compute_ms: float
    tokenize_ms: float
    service_ms: float


NO_TIMINGS = Timings(*[float("nan")] * 4)


class Recorder:
    """Writes the samples of one process into a folder. One thread, or the greenlets of one."""

    def __init__(self, folder: Path) -> None:
        name = str(os.getpid())
        self._file = (folder / f"{name}.samples").open("ab")
        self._errors_file = folder / f"{name}.errors.json"
        self._errors: list[str] = []

    def note(
        self, due_s: float, send_delay_ms: float, latency_ms: float, timings: Timings,
        num_tokens: int, num_texts: int, adapter: int, error: str | None,
    ) -> None:  # fmt: skip
        """Keep one request. error: a short name of what went wrong, few of which differ."""
        record = (due_s, send_delay_ms, latency_ms, timings.queue_ms, timings.compute_ms, timings.tokenize_ms,
                  timings.service_ms, num_tokens, num_texts, adapter, self._index(error))  # fmt: skip
        self._file.write(_PACKER.pack(*record))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _index(self, error: str | None) -> int:
        if error is None:
            return 0
        if error not in self._errors:
            self._errors.append(error)
            self._errors_file.write_text(json.dumps(self._errors), encoding="utf-8")
        return self._errors.index(error) + 1


@dataclass(frozen=True)
class Samples:
    """The requests of one run. records: of type FIELDS, in order of `due_s`; error_names[record.error - 1]."""

    records: Records
    error_names: Sequence[str]

    @classmethod
    def read(cls, folder: Path, last: int | None = None) -> Self:
        """Those of every process that wrote into a folder; a record that is being written is left out.

        last: read no more than so many of each.
        """
        names: list[str] = []
        parts = [np.zeros(0, FIELDS)]
        for path in sorted(folder.glob("*.samples")):
            count = path.stat().st_size // FIELDS.itemsize
            first = 0 if last is None else max(0, count - last)
            part = np.fromfile(path, FIELDS, count - first, offset=first * FIELDS.itemsize)
            errors = folder / f"{path.stem}.errors.json"
            local = json.loads(errors.read_text(encoding="utf-8")) if errors.exists() else []
            names += [name for name in local if name not in names]
            places = np.array([0, *(names.index(name) + 1 for name in local)], "<u2")
            part["error"] = places[part["error"]]
            parts.append(part)
        records = np.concatenate(parts)
        return cls(records[np.argsort(records["due_s"], kind="stable")], names)

    def between(self, start_s: float, end_s: float) -> Samples:
        """Those that were due in a span of Unix time."""
        due = self.records["due_s"]
        return Samples(self.records[(due >= start_s) & (due < end_s)], self.error_names)

    def of(self, adapters: Sequence[int]) -> Samples:
        """Those for some of the hot adapters."""
        return Samples(self.records[np.isin(self.records["adapter"], adapters)], self.error_names)

    def answered(self) -> Samples:
        return Samples(self.records[self.records["error"] == 0], self.error_names)

    def finished_between(self, start_s: float, end_s: float) -> Samples:
        """Those that were answered rightly in a span of Unix time, whenever they were due."""
        ended = self.records["due_s"] + self.records["latency_ms"] / 1e3
        return Samples(self.records[(ended >= start_s) & (ended < end_s)], self.error_names).answered()

    def errors(self) -> dict[str, int]:
        counts = Counter(self.records["error"][self.records["error"] > 0].tolist())
        return {self.error_names[place - 1]: count for place, count in sorted(counts.items())}

    def spread(self, field: str) -> Spread | None:
        """Of one field over all of them; None where nothing tells."""
        values = self.records[field].astype(np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99])
        figures = {"mean": values.mean(), "p50": p50, "p90": p90, "p95": p95, "p99": p99, "max": values.max()}
        return Spread(**{name: round(float(value), 3) for name, value in figures.items()})

    def __len__(self) -> int:
        return len(self.records)
