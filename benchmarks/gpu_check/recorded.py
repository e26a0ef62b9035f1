"""Recorded passes (CUDA graphs) against launched ones, with adapters that take each other's places."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_check.adapters import (
    LOGIT_TOLERANCE,
    METHODS,
    filling,
    known_methods,
    make_sets,
)
from benchmarks.gpu_check.report import IsOver, Report, part_of, short
from server.base_model import BaseModel
from server.forward import Forward, Work, load_base
from server.recorder import CudaRecorder, Recorder
from server.store import Store

DTYPE = torch.bfloat16
LIMIT = LOGIT_TOLERANCE[DTYPE]
FEWEST_SIZES = 3
WAITED = "called a synchronizing CUDA operation"


class Passes(NamedTuple):
    """How passes are recorded. forward: makes one of a base; without a recorder, all that it does is launched."""

    recorder: Callable[[torch.device], Recorder]
    forward: Callable[[BaseModel, Recorder | None], Forward]


def _cuda_recorder(device: torch.device) -> Recorder:
    if device.type != "cuda":
        raise RuntimeError(f"passes cannot be recorded on {device}, a GPU is needed")
    return CudaRecorder(device)


def _forward(base: BaseModel, recorder: Recorder | None) -> Forward:
    return Forward(base, uses_graphs=recorder is not None, recorder=recorder)


ON_CARD = Passes(_cuda_recorder, _forward)


class Counted:
    """A recorder that counts. num_recorded, num_replayed: passes."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.num_recorded = self.num_replayed = 0

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        replay = self._recorder.record(run)
        self.num_recorded += 1

        def counted() -> Tensor:
            self.num_replayed += 1
            return replay()

        return counted

    def held_bytes(self) -> int:
        return self._recorder.held_bytes()

    def forget(self) -> None:
        self._recorder.forget()


class Pair:
    """One base under two forward passes: one that records, and one that launches."""

    def __init__(self, spec: str, device: torch.device, passes: Passes) -> None:
        self.base = load_base(spec, str(device), short(DTYPE))
        self.counted = Counted(passes.recorder(self.base.device))
        self.recorded = passes.forward(self.base, self.counted)
        self.launched = passes.forward(load_base(spec, str(device), short(DTYPE)), None)
        if self.recorded.graphs is None:
            raise RuntimeError(f"passes cannot be recorded on {device}; the log says why (kernels_absent)")
        self.graphs = self.recorded.graphs

    def check(self, report: Report, kind: str, case: str, work: Sequence[Work]) -> None:
        """Both answer alike, each adapter by its own largest logit."""
        compare(report, kind, case, work, self.recorded.run(work), self.launched.run(work))


def compare(
    report: Report, kind: str, case: str, work: Sequence[Work], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> None:
    """Note the error of each adapter of a batch by itself: another's numbers may be much larger."""
    for adapter in dict.fromkeys(adapter for _, adapter in work):
        mine = [number for number, (_, one) in enumerate(work) if one is adapter]
        error = part_of(torch.cat([found[number] for number in mine]), torch.cat([expected[number] for number in mine]))
        report.note(f"{kind}, {adapter.method.name}", f"{case}, {adapter.key}", error, LIMIT)


def check_graphs(
    spec: str,
    device: torch.device,
    root: Path,
    report: Report,
    is_over: IsOver,
    passes: Passes = ON_CARD,
    methods: Sequence[str] = METHODS,
    num_sizes: int | None = None,
) -> None:
    """Batches of every size, of all methods, of two sets of adapters in turn: each size is recorded once.

    num_sizes: of the smallest sizes only.
    """
    pair = Pair(spec, device, passes)
    store = Store(pair.base)
    present = [method for method in known_methods(report) if method in methods]
    made = make_sets(root, present, pair.base, 2, report)
    sets = [[store.load(folder) for folder in folders] for folders in made]
    sizes = pair.graphs.token_counts[:num_sizes]
    if not sizes:
        raise RuntimeError("no size of a pass is recorded for this base")
    turns = (sets[0], sets[1], sets[1], sets[0])
    cases = [(turn, size) for turn in range(len(turns)) for size in sizes]

    def run(case: tuple[int, int]) -> None:
        turn, size = case
        before = pair.counted.num_recorded, pair.counted.num_replayed
        # all methods at once from the first batch of a size on: they are what it is recorded with
        work = filling(size, turns[turn], pair.base, seed=turn)
        pair.check(report, "recorded passes", f"turn {turn}, {size} tokens", work)
        num_recorded, num_replayed = (
            after - some
            for after, some in zip((pair.counted.num_recorded, pair.counted.num_replayed), before, strict=True)
        )
        # what has just been recorded is run again at once, to be compared with what was launched
        is_right = num_recorded == 1 <= num_replayed if turn == 0 else (num_recorded, num_replayed) == (0, 1)
        if not is_right:
            report.fail(
                f"graphs: turn {turn}, {size} tokens: {num_recorded} recorded and {num_replayed} replayed, "
                f"{int(turn == 0)} and 1 are right"
            )

    if len(sizes) < FEWEST_SIZES:
        report.fail(
            f"graphs: {len(sizes)} sizes are recorded for this base, {FEWEST_SIZES} are needed to say something"
        )
    report.try_each("graphs", cases, 2 * len(sizes), is_over, run)
    if not pair.graphs.token_counts:
        report.fail("graphs: recorded passes were given up; the log says why (kernels_absent)")
    work = filling(sizes[0], sets[0], pair.base, seed=0)
    report.figures["graphs"] = {
        "sizes": sizes,
        "num_recorded": pair.counted.num_recorded,
        "num_replayed": pair.counted.num_replayed,
        "held_bytes": pair.graphs.held_bytes(),
        "waits_of_a_launched_pass": waits(lambda: pair.launched.run(work), device),
        "waits_of_a_recorded_pass": waits(lambda: pair.recorded.run(work), device),
    }
    store.close()


def waits(run: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Where the host waits for the device within a pass that has been run before, by file and line, and how often.

    One is right, where the answers are fetched.
    """
    is_card = device.type == "cuda"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if is_card:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            if is_card:
                torch.cuda.set_sync_debug_mode("default")
    places = (f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in caught if WAITED in str(one.message))
    return dict(Counter(places))
