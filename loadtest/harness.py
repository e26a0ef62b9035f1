"""Runs a scenario: starts the services it needs, lets its cases take turns, and turns what was measured into rows."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from decision.provenance import provenance
from decision.rows import LatencyRow, MemoryRow
from loadtest import capacity, service
from loadtest.changes import Changes
from loadtest.errors import LoadTestError, Misuse
from loadtest.measure import (
    Measured,
    Progress,
    Span,
    Target,
    about,
    latency_row,
    measure,
    memory_over_time,
    memory_rows,
)
from loadtest.remote import Adapter, Remote
from loadtest.scenario import Case, Scenario
from loadtest.service import Service, Setting
from loadtest.timeline import Timeline
from loadtest.workload import Workload

OURS = "adaptermux"
FIRST, OTHERS = "the first adapter", "the other adapters"
NUM_SPARE = 8
"""Adapters of each method that changes bring in."""
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Options:
    """How a scenario is run. folder: for raw samples; remote: a service that runs already."""

    folder: Path
    command: str
    remote: Remote | None = None
    num_processes: int = 1
    is_trained: bool = False
    """The adapters of a service that runs already are no dummies."""


@dataclass(frozen=True)
class Turn:
    """A case that is being measured. number: from 1."""

    number: int
    total: int
    case: str


@dataclass
class Harness:
    """Everything that was started ends with it. Used from one thread."""

    scenario: Scenario
    options: Options
    show: Callable[[Turn, Progress | None], None] = lambda turn, progress: None
    _stack: ExitStack = field(default_factory=ExitStack)
    _services: dict[str, Service] = field(default_factory=dict)
    _folders: dict[str, Path] = field(default_factory=dict)

    def __enter__(self) -> Self:
        if self.options.remote is not None:
            _check_remote(self.scenario)
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptermux-loadtest-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> Iterator[LatencyRow | MemoryRow]:
        """Measure every case as often as the scenario says, in turns. Raises LoadTestError and Misuse."""
        has_parts = any(case.workload.flood > 1 for case in self.scenario.cases.values())
        targets = {name: self.target(case) for name, case in self.scenario.cases.items()}
        total, number = self.scenario.repeats * len(targets), 0
        for repeat in range(self.scenario.repeats):
            for name, case in self.scenario.cases.items():
                number += 1
                turn = Turn(number, total, name)
                self.show(turn, None)
                if case.limit_p95_ms is None:
                    yield from self._measure(turn, repeat, case, targets[name], has_parts)
                else:
                    yield from self._search(turn, repeat, case, targets[name])

    def _measure(
        self, turn: Turn, repeat: int, case: Case, target: Target, has_parts: bool
    ) -> Iterator[LatencyRow | MemoryRow]:
        with self._changes(case, target) if case.changes_per_s else nullcontext() as changes:
            measured = self._send(turn, repeat, case, target, case.workload)
        if changes is not None and changes.trouble is not None:
            raise LoadTestError(f"an adapter could not be changed: {changes.trouble}")
        facts = self._about(turn, repeat, target, case.workload)
        done = {"changes": dict(changes.done)} if changes is not None else {}
        yield latency_row(facts | _arrival(case.workload) | done, measured, "all", None)
        if has_parts:
            others = range(1, len(target.hot))
            yield latency_row(facts | _arrival(case.workload), measured, FIRST, [0])
            yield latency_row(facts | _arrival(case.workload), measured, OTHERS, others)
        yield from memory_rows(facts, measured)

    def _search(self, turn: Turn, repeat: int, case: Case, target: Target) -> Iterator[LatencyRow]:
        """Every rate that was tried is a row of its own."""
        assert case.workload.rate_per_s is not None
        rates = capacity.search(case.workload.rate_per_s)
        rate = next(rates)
        with suppress(StopIteration):  # the search is over
            while True:
                workload = case.workload.model_copy(update={"rate_per_s": rate})
                measured = self._send(turn, repeat, case, target, workload, f"{rate:.4g}")
                facts = self._about(turn, repeat, target, workload) | _arrival(workload)
                row = latency_row(facts | {"limit_p95_ms": case.limit_p95_ms}, measured, "all", None)
                yield row
                rate = rates.send(capacity.holds(row))

    def _send(
        self, turn: Turn, repeat: int, case: Case, target: Target, workload: Workload, more: str = ""
    ) -> Measured:
        name = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{turn.number:03}-{turn.case}-{repeat}{'-' if more else ''}{more}")
        folder = self.options.folder / "samples" / name[:120]
        folder.mkdir(parents=True)
        span = Span(case.warmup_s, case.duration_s)
        measured = measure(
            target, workload, span, folder, self.options.num_processes, lambda progress: self.show(turn, progress)
        )
        Timeline(
            scenario=self.scenario.name,
            target=target.name,
            case=turn.case,
            repeat=repeat,
            command=self.options.command,
            start_s=measured.start_s,
            end_s=measured.end_s,
            **_arrival(workload),
            **memory_over_time(measured),
        ).write(folder)
        return measured

    def _about(self, turn: Turn, repeat: int, target: Target, workload: Workload) -> dict[str, Any]:
        return about(self.scenario.name, turn.case, repeat, target, workload, provenance(self.options.command))

    def target(self, case: Case) -> Target:
        """A service for a case; cases that need the same one share it."""
        if self.options.remote is not None:
            running, settings = Service(self.options.remote, pid=None), dict[str, Setting]()
        else:
            folder = self._adapters(case, case.adapters.num_registered)
            settings = dict(case.service)
            if case.adapters.cache_share is not None:
                needed = sum(one.num_bytes for one in _hot(_made(folder), case))
                settings["adapter_bytes"] = round(needed * case.adapters.cache_share)
            running = self._service(folder, settings, case)
        known = running.remote.adapters()
        hot_adapters = _hot(known, case)
        base = running.remote.base()
        return Target(
            name=OURS,
            service=running,
            hot=[(one.adapter_id, one.method) for one in hot_adapters],
            num_registered=len(known),
            base=base["name"],
            dtype=base["dtype"],
            device=base["device"],
            settings=settings,
            has_random_weights=self.options.remote is None or not self.options.is_trained,
            hot_bytes=sum(one.num_bytes for one in hot_adapters),
        )

    def _service(self, folder: Path, settings: Mapping[str, Setting], case: Case) -> Service:
        key = json.dumps([str(folder), dict(settings), case.base], sort_keys=True)
        if key not in self._services:
            state = self._scratch / f"state-{len(self._services)}"
            settings = dict(settings) | ({"base": case.base} if case.base else {})
            starting = service.started(folder, settings, state, self._scratch)
            self._services[key] = self._stack.enter_context(starting)
        return self._services[key]

    def _adapters(self, case: Case, count: int) -> Path:
        """A folder of adapters with random weights; cases that need the same ones share it."""
        methods = case.adapters.methods
        key = json.dumps([methods, count, case.base, case.adapters.options], sort_keys=True)
        if key not in self._folders:
            folder = self._scratch / f"adapters-{len(self._folders)}"
            service.make_adapters(folder, methods, count, case.base, case.adapters.options)
            self._folders[key] = folder
        return self._folders[key]

    def _changes(self, case: Case, target: Target) -> Changes:
        spare = self._adapters(case, NUM_SPARE * len(case.adapters.methods) + 1)
        sources = sorted(path for path in spare.iterdir() if path.is_dir())
        hot = [adapter_id for adapter_id, _ in target.hot]
        return Changes(target.service.remote, sources, hot, case.changes_per_s)


def _check_remote(scenario: Scenario) -> None:
    """What can only be done with a service that the harness starts."""
    for name, case in scenario.cases.items():
        if case.service or case.base or case.adapters.cache_share is not None:
            raise Misuse(f"case `{name}` sets how the service is started, which --host does not let the load test do")
        if case.changes_per_s:
            raise Misuse(f"case `{name}` changes adapters from files of this machine, which goes without --host only")


def _made(folder: Path) -> list[Adapter]:
    """What a service will say of a folder of adapters."""
    return [
        Adapter(path.name, json.loads((path / "adapter.json").read_bytes())["method"], (path / WEIGHTS).stat().st_size)
        for path in folder.iterdir()
        if path.is_dir()
    ]


def _hot(known: Sequence[Adapter], case: Case) -> list[Adapter]:
    """Adapters among which requests choose: as many of each method, in an order that the workload's seed fixes."""
    methods, count = case.workload.methods or case.adapters.methods, case.workload.num_hot
    found: list[Adapter] = []
    for index, method in enumerate(methods):
        num = count // len(methods) + (index < count % len(methods))
        ours = sorted((one for one in known if one.method == method), key=lambda one: _natural(one.adapter_id))
        if len(ours) < num:
            raise Misuse(
                f"the service has {len(ours)} {method} adapters, the case needs {num}: `adaptermux-train dummy "
                f"--method {method} --count {num} --output FOLDER` makes some; or --set workload.num_hot"
            )
        found += ours[:num]
    random.Random(case.workload.seed).shuffle(found)  # so that no method has the popular ones
    return found


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts `a-10` behind `a-9`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _arrival(workload: Workload) -> dict[str, Any]:
    if workload.rate_per_s is None:
        return {"num_users": workload.num_users}
    return {"rate_per_s": round(workload.total_rate_per_s, 3)}
