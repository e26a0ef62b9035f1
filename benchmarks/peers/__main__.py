"""Our server against other ways to serve many classifiers: one load, one machine, one interleaved run.

    make peers
    python -m benchmarks.peers

32 clients that wait for their answers (closed loop), one text a request, skewed lengths (about 20 tokens in the mean,
at most 128). Asked are our server with 64 hot adapters of four methods, as it starts by itself and with `--http-
processes 1`, our server with a head alone, which is the base without adapters, plain peft with the same 64 adapters
(`benchmarks.peers.set_adapter`), and infinity with one classifier and no adapters (`benchmarks.peers.infinity`), where
it is installed. All run from the start, and each gets the load in turn, round by round, in another order each time.
Peers run twice: with the threads that our server has by default, and with those that they take by themselves; the
ratios are against the faster. Fails if a request did.

Requests a second suffer from whatever else the machine does; the processor time that a service spends on a request
suffers less, and stands beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import infinity
from benchmarks.peers.contenders import BASE, FRONTED, MIX, OURS, Contender, make_adapters, running
from benchmarks.timing import machine
from decision.provenance import provenance
from decision.rows import LatencyRow, Writer
from loadtest.measure import Measured, Span, about, latency_row, measure
from loadtest.workload import Workload

RESULT = Path(__file__).parent.parent / "results" / "peers.json"
COMMAND = "python -m benchmarks.peers"
DTYPES = ("float32", "bfloat16")
NUM_ADAPTERS, NUM_USERS = 64, 32


@dataclass(frozen=True)
class Turn:
    """One contender in one round. cpu_ms: processor time of the service for each request that it answered."""

    row: LatencyRow
    cpu_ms: float


Rounds = Mapping[str, Sequence[Turn]]
"""By contender, a turn a round."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="one or both (both)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (%(default)s)")
    parser.add_argument("--duration-s", type=float, default=6.0, help="of the load on each, each round (%(default)s)")
    parser.add_argument("--warmup-s", type=float, default=2.0, help="before that, not measured (%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON Lines file that gets a row for every contender and round")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file of the ratios (%(default)s)")
    flags = parser.parse_args()
    if not infinity.is_installed():
        print("infinity is not installed and left out; `make peers` installs it", file=sys.stderr)
    span = Span(flags.warmup_s, flags.duration_s)
    record: dict[str, Any] = {
        "schema": 2, "command": COMMAND, "rounds": flags.rounds, "duration_s": flags.duration_s, **machine(),
    }  # fmt: skip
    num_errors = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        adapters = Path(folder) / "adapters"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft reads a property that transformers has renamed
            make_adapters(adapters, NUM_ADAPTERS)
        writer = stack.enter_context(Writer(flags.output)) if flags.output else None
        for dtype in flags.dtype or DTYPES:
            with running(adapters, Path(folder) / dtype, dtype) as contenders:
                rounds = _run(contenders, span, flags.rounds, writer)
            record[dtype] = summary(rounds)
            num_errors += sum(record[dtype]["errors"].values())
            print(f"{dtype}\n{json.dumps(record[dtype], indent=2)}")
    flags.result.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 1 if num_errors else 0


def summary(rounds: Rounds) -> dict[str, Any]:
    """Medians over the rounds, and how many times as fast each of ours on the mix is as every other."""
    speed = {name: [turn.row.throughput_per_s for turn in turns] for name, turns in rounds.items()}
    economy = {name: [1 / turn.cpu_ms for turn in turns] for name, turns in rounds.items()}
    ours = {case: name for case in (MIX, FRONTED) if (name := f"{OURS}, {case}") in speed}
    others = {"base": (base := f"{OURS}, {BASE}")}
    for name in sorted(speed.keys() - {*ours.values(), base}, key=lambda name: statistics.median(speed[name])):
        others[name.partition(",")[0]] = name  # the faster one stays
    return {
        "compared_with": others,
        "requests_per_s_ratios": {case: _ratios(speed, name, others) for case, name in ours.items()},
        "cpu_ratios": {case: _ratios(economy, name, others) for case, name in ours.items()},
        "requests_per_s": {name: round(statistics.median(values), 1) for name, values in speed.items()},
        "cpu_ms": {name: round(statistics.median(turn.cpu_ms for turn in turns), 2) for name, turns in rounds.items()},
        "p50_ms": {name: _latency(turns, "p50") for name, turns in rounds.items()},
        "p95_ms": {name: _latency(turns, "p95") for name, turns in rounds.items()},
        "errors": {name: sum(turn.row.num_errors for turn in turns) for name, turns in rounds.items()},
    }


def _run(contenders: Sequence[Contender], span: Span, num_rounds: int, writer: Writer | None) -> Rounds:
    rounds: dict[str, list[Turn]] = {one.name: [] for one in contenders}
    for number in range(num_rounds):
        start = number % len(contenders)
        for one in [*contenders[start:], *contenders[:start]]:
            workload = Workload(num_hot=len(one.target.hot), num_users=NUM_USERS, seed=number)
            with tempfile.TemporaryDirectory() as folder:
                measured = measure(one.target, workload, span, Path(folder))
            facts = about("peers", one.case, number, one.target, workload, provenance(COMMAND))
            row = latency_row(facts, measured, "all", None)
            if not row.throughput_per_s:
                raise SystemExit(f"{one.name} answered nothing rightly: {row.errors}")
            rounds[one.name].append(Turn(row, _cpu_s(measured) / row.throughput_per_s * 1e3))
            if writer is not None:
                writer.write(row)
            print(f"round {number + 1} of {num_rounds}: {one.name}: {row.throughput_per_s:.1f}/s", file=sys.stderr)
    return rounds


def _cpu_s(measured: Measured) -> float:
    """Of the service's processes, a second."""
    first, last = measured.during[0], measured.during[-1]
    assert first.cpu_s is not None, "the services are our own processes"
    assert last.cpu_s is not None, "the services are our own processes"
    return (last.cpu_s - first.cpu_s) / (last.at_s - first.at_s)


def _ratios(values: Mapping[str, Sequence[float]], ours: str, others: Mapping[str, str]) -> dict[str, Any]:
    return {key: _ratio(values[ours], values[name]) for key, name in others.items()}


def _ratio(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Over the rounds: the median, the lowest and the highest."""
    ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
    found = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {name: round(value, 3) for name, value in found.items()}


def _latency(turns: Sequence[Turn], mark: str) -> float | None:
    values = [getattr(turn.row.latency_ms, mark) for turn in turns if turn.row.latency_ms is not None]
    return round(statistics.median(values), 1) if values else None


if __name__ == "__main__":
    sys.exit(main())
