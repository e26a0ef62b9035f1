"""Recorded passes while another thread loads and evicts adapters, so that they lie elsewhere each time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from benchmarks.gpu_check.adapters import METHODS, filling, known_methods, make_sets
from benchmarks.gpu_check.recorded import ON_CARD, Pair, Passes, compare
from benchmarks.gpu_check.report import IsOver, Report
from benchmarks.loading import meanwhile
from server.adapter_folder import AdapterFolder
from server.device_memory import CardMemory, memory_of
from server.loaded_adapter import LoadedAdapter
from server.memory_budget import share_out
from server.store import Store

ROOT = Path(__file__).parent.parent.parent
NUM_SETS, SETS_THAT_FIT = 6, 3
NUM_ROUNDS, FEWEST_ROUNDS = 120, 12
MOST_TOKENS = 512
WAIT_S = 60
START_S, LIMIT_S = 120, 30
"""What a process of its own may take to start, and what it has for its rounds."""
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""What tells torch's allocator, now and in older versions."""
EXPANDABLE = "expandable_segments:True"


def check_moves(
    spec: str,
    device: torch.device,
    root: Path,
    report: Report,
    is_over: IsOver,
    passes: Passes = ON_CARD,
    methods: Sequence[str] = METHODS,
    num_rounds: int = NUM_ROUNDS,
    most_tokens: int = MOST_TOKENS,
    card: CardMemory | None = None,
) -> None:
    """Batches of one set of adapters after the other, in memory that half of the sets fit in.

    They are compared with launched passes of the same adapters that stay where they are. The memory is shared out as a
    server does it. card: the device's, if it is not what `memory_of` finds.
    """
    pair = Pair(spec, device, passes)
    present = [method for method in known_methods(report) if method in methods]
    sets = make_sets(root, present, pair.base, NUM_SETS, report)
    folders = [folder for some in sets for folder in some]
    num_bytes = sum(folder.weights.num_bytes for folder in folders)
    room, memory = num_bytes * SETS_THAT_FIT // NUM_SETS, card or memory_of(device)
    if isinstance(memory, CardMemory):
        budget = share_out(memory, pair.base, pair.recorded.run, most_tokens, room, pair.graphs)
        room, report.figures["memory shared out"] = budget.adapter_bytes, dict(budget.parts)
    sizes = [size for size in pair.graphs.token_counts if size <= most_tokens]
    if not sizes:
        raise RuntimeError("recorded passes were given up; the log says why (kernels_absent)")
    with closing(Store(pair.base)) as still, closing(Store(pair.base, room, num_bytes // 2, memory=memory)) as store:
        unmoved = [[still.load(folder) for folder in some] for some in sets]
        for folder in folders:
            store.register(folder)
        before = pair.counted.num_replayed

        def run(number: int) -> None:
            turn, size = number % NUM_SETS, sizes[number // NUM_SETS % len(sizes)]
            expected = pair.launched.run(filling(size, unmoved[turn], pair.base, number))
            with _acquired(store, sets[turn]) as adapters:
                work = filling(size, adapters, pair.base, number)
                found = pair.recorded.run(work)
            compare(report, "recorded passes of what moves", f"round {number}", work, found, expected)

        rng = random.Random(0)

        def move() -> None:
            with _acquired(store, [rng.choice(folders)]):  # others have to go for it
                pass

        with meanwhile(move):
            report.try_each("moves", range(num_rounds), min(FEWEST_ROUNDS, num_rounds), is_over, run)
        stats = store.stats()
    num_run, num_replayed = report.cases["moves"]["run"], pair.counted.num_replayed - before
    report.figures["moves"] = {
        "num_replayed": num_replayed,
        "num_loads": stats.num_loads,
        "num_evictions": stats.num_evictions,
        "is_expandable": _is_expandable(device),
    }
    if num_replayed < num_run:
        report.fail(f"moves: {num_replayed} of {num_run} passes were replayed, all should be")
    if stats.num_evictions < num_run:
        report.fail(
            f"moves: {stats.num_evictions} adapters left in {num_run} rounds, that is not enough to say anything"
        )


def check_expandable(spec: str, device: torch.device, root: Path, report: Report, is_over: IsOver) -> None:
    """The same in a process where torch's memory grows in place."""
    if is_over():
        report.fail("expandable: there was no time for a process of its own")
        return
    root.mkdir(parents=True, exist_ok=True)
    output = root / "expandable.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--only", "moves", "--base", spec, "--device", str(device)]
    command += ["--limit-s", str(LIMIT_S), "--output", str(output)]
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what this process keeps for later is free for that one
    settings = {**os.environ, **dict.fromkeys(NAMES, EXPANDABLE)}
    done = subprocess.run(
        command, env=settings, cwd=ROOT, capture_output=True, text=True, check=False, timeout=START_S + LIMIT_S
    )
    if not output.exists():
        raise RuntimeError(f"a process of its own ended with status {done.returncode}: {done.stderr[-400:]}")
    found = json.loads(output.read_text(encoding="utf-8"))
    if not found["figures"].get("moves", {}).get("is_expandable", True):
        report.leave_out("expandable segments: torch has none on this machine")
        return
    for failure in found["failures"]:
        report.fail(f"with expandable segments: {failure}")
    report.errors |= {f"{kind}, expandable segments": errors for kind, errors in found["errors"].items()}
    report.figures |= {f"{kind}, expandable segments": figures for kind, figures in found["figures"].items()}
    report.cases |= {f"{part}, expandable segments": cases for part, cases in found["cases"].items()}


@contextmanager
def _acquired(store: Store, folders: Sequence[AdapterFolder]) -> Iterator[list[LoadedAdapter]]:
    """Adapters that stay where they are meanwhile, whether they were in memory or have to be loaded."""
    futures = [store.acquire(folder.adapter_id, folder.version) for folder in folders]
    adapters = [future.result(WAIT_S) for future in futures]
    try:
        yield adapters
    finally:
        for adapter in adapters:
            store.release(adapter)


def _is_expandable(device: torch.device) -> bool:
    """Whether torch's memory on the device grows in place."""
    if device.type != "cuda":
        return False
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return any(segment.get("is_expandable") for segment in segments)
