"""Rows of speed and memory of the engine alone, on one device: no HTTP, no queue, no tokenizing.

    python -m benchmarks.device --output decision/evidence/gpu.jsonl

Two base models, MiniLM and one of Llama 3.2's shape with random weights, take turns with adapters of random weights.
A `latency` row of scenario `engine` is about passes: a request is one pass over 32 texts of skewed lengths, from their
token ids to the logits in the host's memory, and its latency is the wall time of that, the device waited for before and
after. There are no users and no rate: one pass follows the other. Every pass draws its adapters from the hot ones;
cases take turns pass by pass, so that their ratios are fair. Method `head` is the bare base: what differs between its
adapters is the head only. It has a forward pass of its own, whose recorded passes make room for no method. In scenario
`adapter-load` a request is one adapter brought to the device by the store, from the host's memory or from disk, where
the system has it in its cache. Rows of the part `others` are passes while nothing is loaded, and while another thread
loads one adapter after the other. `memory` rows give what torch holds in tensors on
the device, without the driver's own: at rest with the named adapters alone, under load with all that are resident and
at the highest of the case's passes, one base counted. Resident memory is the whole process's, which has also made the
adapters. At the end it says which of the project's goals (`benchmarks.goals`) are met.

Needs torch, transformers, peft and numpy, but neither pydantic nor any part of the service.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from benchmarks import goals
from benchmarks.loading import MOVING, time_beside, time_loads
from benchmarks.material import find_base
from benchmarks.passes import NUM_TEXTS, SEED, Case, Pass, interleave, texts_for
from benchmarks.random_base import SHAPES, write_base
from benchmarks.timing import resident_kib
from decision.provenance import facts
from server import adapter_folder, base_model
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.errors import AdaptermuxError, BaseModelError
from server.forward import Forward, load_base
from server.methods import method_named
from server.number_format import DTYPES
from server.store import Store
from training import dummy

BARE = "head"
METHODS = ("lora", "ia3", "prefix", "bottleneck")
NUM_HOT = (1, 8, 64)
MANY_OF, FEW_RESIDENT = "lora", 10
NUM_LOADED = 8
Row = dict[str, Any]
Folders = Mapping[str, Sequence[AdapterFolder]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON Lines file to write")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="(%(default)s)")
    parser.add_argument("--base", default=base_model.EMBEDDED_ID, help="folder or hub id (%(default)s)")
    parser.add_argument("--shape", default="llama-1b", choices=(*SHAPES, "none"), help="second base (%(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="passes of every case (%(default)s)")
    parser.add_argument("--resident", type=int, default=1000, help="adapters where there are many (%(default)s)")
    parser.add_argument("--limit-s", type=float, default=540, help="end by then with what there is (%(default)s)")
    parser.add_argument("--goals", action="store_true", help="end with status 1 if a goal is missed")
    flags = parser.parse_args(arguments)
    end = time.monotonic() + flags.limit_s
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    part = flags.output.with_name(f"{flags.output.name}.part")
    try:
        find_base(flags.base)
    except BaseModelError as error:
        parser.error(str(error))
    try:
        device = base_model.choose_device(flags.device)
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), part.open("w", encoding="utf-8") as file:
            warnings.simplefilter("ignore")
            rows = list(_measure_bases(flags, device, end, file))
        part.replace(flags.output)
    except (AdaptermuxError, OSError) as error:
        print(f"benchmarks.device: {error}", file=sys.stderr)
        return 1
    few, many = (f"{FEW_RESIDENT} a pass of {count} {MANY_OF}" for count in (FEW_RESIDENT, flags.resident))
    reached = goals.of_rows(rows, many, few)
    goals.tell(reached)
    return 1 if flags.goals and not all(goal.is_met for goal in reached) else 0


def _measure_bases(flags: argparse.Namespace, device: torch.device, end: float, file: TextIO) -> Iterator[Row]:
    """One base model after the other; the first leaves the second at least half of the time."""
    name = base_model.name_of(flags.base, base_model.fingerprint(base_model.locate(flags.base)))
    command = f"python -m benchmarks.device --base {name} --shape {flags.shape} --dtype {flags.dtype}"
    command += f" --device {flags.device} --rounds {flags.rounds} --resident {flags.resident}"
    is_last = flags.shape == "none"
    with TemporaryDirectory() as scratch:
        until = end if is_last else (time.monotonic() + end) / 2
        yield from _measure(flags.base, Path(scratch) / "adapters", flags, until, command, file)
    if is_last or time.monotonic() > end:
        return
    with TemporaryDirectory() as scratch:
        _say(f"making a base of random weights: {flags.shape}")
        folder = write_base(Path(scratch) / f"random-{flags.shape}", SHAPES[flags.shape], device)
        yield from _measure(str(folder), Path(scratch) / "adapters", flags, end, command, file)


def _measure(
    spec: str, root: Path, flags: argparse.Namespace, until: float, command: str, file: TextIO
) -> Iterator[Row]:
    """All rows of one base model, each written when it is known."""

    def load() -> BaseModel:
        return load_base(spec, flags.device, flags.dtype)

    base = load()
    bench = Bench(base, load, root, lambda: time.monotonic() > until, facts(command))
    _say(f"{base.name}: {str(base.dtype).removeprefix('torch.')} on {base.device}")
    for row in bench.rows(flags.rounds, flags.resident):
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
        yield row


class Bench:
    """One base model and adapters for it.

    load: the same base once more. is_over: whether the time is up, after which nothing new is begun.
    """

    def __init__(
        self,
        base: BaseModel,
        load: Callable[[], BaseModel],
        root: Path,
        is_over: Callable[[], bool],
        provenance: Mapping[str, Any],
    ) -> None:
        self._base, self._load, self._root, self._is_over, self._provenance = base, load, root, is_over, provenance
        self._forward = Forward(base, keeps_weights=False)
        self._texts = texts_for(base)

    def rows(self, rounds: int, num_resident: int) -> Iterator[Row]:
        """Memory at rest, loads, then passes and the memory that they take."""
        yield self._at_rest([])
        folders = self._make(num_resident)
        many = folders[MANY_OF]
        for some in (*(made[: NUM_HOT[-1]] for made in folders.values()), many[:num_resident]):
            if some and not self._is_over():
                yield self._at_rest(some)
        for method in METHODS:
            if len(folders[method]) >= NUM_LOADED and not self._is_over():
                yield from self._loads(folders[method][:NUM_LOADED])
        if len(many) >= 2 * NUM_LOADED and not self._is_over():
            yield from self._beside_loads(many[:NUM_LOADED], many[NUM_LOADED : 2 * NUM_LOADED], rounds)
        if self._is_over():
            return
        gc.collect()
        held = self._held_bytes()
        bare = Forward(self._load(), keeps_weights=False)
        twin_bytes = self._held_bytes() - held
        store = Store(self._base)
        cases = _cases(self._forward, bare, store, folders, num_resident)
        stats = store.stats()
        _say(f"{self._base.name}: {stats.num_resident} adapters are resident, {len(cases)} cases take turns")
        passes = interleave(self._base, self._texts, cases, rounds, self._is_over)
        store.close()
        for case in cases:
            if found := passes[case.name]:
                about = self._about("engine", case.name, case.methods(), stats.num_known, self._workload()) | {
                    "hot_bytes": sum(adapter.resident_bytes for adapter in case.hot)
                }
                yield about | self._speed(case.name, found)
                peaks = [one.peak_bytes - twin_bytes for one in found if one.peak_bytes is not None]
                yield about | self._memory("load", store, max(peaks, default=None))

    def _make(self, num_resident: int) -> dict[str, list[AdapterFolder]]:
        """Folders with random weights, as many of each method as there is time for."""
        found: dict[str, list[AdapterFolder]] = {}
        for method in (BARE, *METHODS):
            count = max(NUM_HOT[-1], num_resident if method == MANY_OF else 0)
            found[method] = []
            if self._is_over():
                continue
            _say(f"{self._base.name}: making {count} {method} adapters")
            for name in dummy.make(self._root, method_named(method), count, str(self._base.folder)):
                found[method].append(adapter_folder.read(self._root, name, self._base))
                if self._is_over():
                    break
        return found

    def _at_rest(self, folders: Sequence[AdapterFolder]) -> Row:
        """What the base holds with these adapters, of one method, and no others."""
        gc.collect()  # what is left of others would be counted
        store = Store(self._base)
        adapters = [store.load(folder) for folder in folders]
        methods = {folders[0].method.name: len(adapters)} if folders else {}
        case = f"{len(adapters)} {folders[0].method.name}" if folders else "no adapters"
        held = self._held_bytes() if self._base.device.type == "cuda" else None
        row = self._about("engine", case, methods, len(adapters), {}) | self._memory("idle", store, held)
        store.close()
        return row | {"hot_bytes": row["resident_adapter_bytes"]}

    def _loads(self, folders: Sequence[AdapterFolder]) -> Iterator[Row]:
        """Adapters that are brought to the device in turn, where there is room for one of them only."""
        method, room = folders[0].method.name, max(folder.weights.num_bytes for folder in folders)
        for tier, from_host in (("disk", False), ("host memory", True)):
            seconds = time_loads(self._base, folders, from_host)
            case, workload = f"{method} from {tier}", {"seed": SEED, "adapters": len(folders)}
            yield (
                self._about("adapter-load", case, {method: len(folders)}, len(folders), workload)
                | {"hot_bytes": room, "adapter_loads": len(seconds), "adapter_misses": len(seconds)}
                | _latency(seconds, num_texts=0)
            )

    def _beside_loads(
        self, hot: Sequence[AdapterFolder], others: Sequence[AdapterFolder], rounds: int
    ) -> Iterator[Row]:
        """What passes of hot adapters notice of others that are loaded."""
        with closing(Store(self._base)) as store:
            case = Case(f"{hot[0].method.name}, {len(hot)} hot", self._forward, [store.load(folder) for folder in hot])
            found, num_loads = time_beside(self._base, case, self._texts, others, rounds, self._is_over)
        for meanwhile, passes in found.items():
            if passes:
                name, num_known = f"{case.name}, {meanwhile}", len(hot) + len(others)
                about = self._about("engine", name, case.methods(), num_known, self._workload())
                changes = {"loads": num_loads} if meanwhile == MOVING else {}
                yield about | {"part": "others", "changes": changes} | self._speed(name, passes)

    def _speed(self, case: str, passes: Sequence[Pass]) -> Row:
        seconds = [one.seconds for one in passes]
        num_tokens = sum(map(len, self._texts))
        median = float(np.median(seconds))
        _say(f"{self._base.name}, {case}: {median * 1e3:.2f} ms, {NUM_TEXTS / median:.0f} texts/s")
        return _latency(seconds, NUM_TEXTS) | {
            "tokens_per_s": round(num_tokens * len(passes) / sum(seconds), 1),
            "batch": {
                "texts": NUM_TEXTS,
                "tokens": num_tokens,
                "adapters": round(float(np.mean([one.num_adapters for one in passes])), 3),
                "methods": round(float(np.mean([one.num_methods for one in passes])), 3),
            },
        }

    def _workload(self) -> Mapping[str, Any]:
        lengths = list(map(len, self._texts))
        return {"seed": SEED, "texts_per_pass": NUM_TEXTS, "tokens_per_pass": sum(lengths), "longest": max(lengths)}

    def _held_bytes(self) -> int:
        """By tensors on a GPU."""
        return torch.cuda.memory_allocated(self._base.device) if self._base.device.type == "cuda" else 0

    def _memory(self, moment: str, store: Store, device_bytes: int | None) -> Row:
        stats = store.stats()
        return {
            "kind": "memory",
            "moment": moment,
            "rss_bytes": resident_kib() * 1024,
            "device_bytes": device_bytes,
            "resident_adapters": stats.num_resident,
            "resident_adapter_bytes": stats.resident_bytes,
        }

    def _about(
        self, scenario: str, case: str, methods: Mapping[str, int], num_known: int, workload: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The fields of `decision.rows.Served`."""
        return {
            "schema_number": 1,
            "scenario": scenario,
            "case": case,
            "target": "adaptermux-engine",
            "base": self._base.name,
            "dtype": str(self._base.dtype).removeprefix("torch."),
            "device": str(self._base.device),
            "methods": methods,
            "has_random_weights": True,
            "num_registered": num_known,
            "num_hot": sum(methods.values()),
            "workload": workload,
            "provenance": self._provenance,
        }


def _cases(forward: Forward, bare: Forward, store: Store, folders: Folders, num_resident: int) -> list[Case]:
    """Load all adapters, and say which of them are hot in turn; only of what there was time to make.

    bare: the forward pass of the bare base, which would pay for every method that another one's graphs have seen.
    """
    loaded = {method: [store.load(folder) for folder in some] for method, some in folders.items()}
    cases = [
        Case(f"{method}, {count} hot", bare if method == BARE else forward, loaded[method][:count])
        for method in (BARE, *METHODS)
        for count in NUM_HOT
        if len(loaded[method]) >= count
    ]
    mixed = [adapter for turn in zip(*(loaded[method] for method in METHODS), strict=False) for adapter in turn]
    cases += [
        Case(f"mix, {count} hot", forward, mixed[:count])
        for count in (max(count, len(METHODS)) for count in NUM_HOT)
        if len(mixed) >= count
    ]
    many = loaded[MANY_OF]
    if len(many) >= num_resident:
        # the same number of adapters a pass; what differs is from how many they are drawn
        for count in (FEW_RESIDENT, num_resident):
            cases.append(Case(f"{FEW_RESIDENT} a pass of {count} {MANY_OF}", forward, many[:count], FEW_RESIDENT))
    return cases


def _latency(seconds: Sequence[float], num_texts: int) -> dict[str, Any]:
    """The fields of `decision.rows.LatencyRow` that follow from the times. num_texts: a request's."""
    total, values = sum(seconds), np.array(seconds) * 1e3
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99])
    spread = {"mean": values.mean(), "p50": p50, "p90": p90, "p95": p95, "p99": p99, "max": values.max()}
    return {
        "kind": "latency",
        "duration_s": round(total, 6),
        "num_requests": len(seconds),
        "num_errors": 0,
        "throughput_per_s": round(len(seconds) / total, 3),
        "texts_per_s": round(num_texts * len(seconds) / total, 3),
        "latency_ms": {name: round(float(value), 4) for name, value in spread.items()},
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
