"""Passes of one base model over batches whose texts use hot adapters, timed in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.material import job, skewed_texts
from server.base_model import BaseModel
from server.forward import Forward, Work
from server.loaded_adapter import LoadedAdapter

NUM_TEXTS = 32
WARM_UP_ROUNDS = 3
SEED = 0
Texts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Case:
    """Hot adapters, among which every pass of `forward` draws at most so many for its texts."""

    name: str
    forward: Forward
    hot: Sequence[LoadedAdapter]
    num_a_pass: int = NUM_TEXTS

    def work(self, texts: Texts, number: int) -> list[Work]:
        """The batch of a round."""
        count = min(self.num_a_pass, len(self.hot))
        chosen = random.Random(number).sample(self.hot, count)
        return [(job(text), chosen[index % count]) for index, text in enumerate(texts)]

    def methods(self) -> dict[str, int]:
        """Hot adapters by method."""
        found = [adapter.method.name for adapter in self.hot]
        return {name: found.count(name) for name in dict.fromkeys(found)}


@dataclass(frozen=True)
class Pass:
    """num_adapters, num_methods: in its batch. peak_bytes: the most that torch held on the GPU; None on a CPU."""

    seconds: float
    num_adapters: int
    num_methods: int
    peak_bytes: int | None


def texts_for(base: BaseModel) -> Texts:
    """The texts of every pass, as ids that the base knows."""
    return [[token % base.vocabulary_size for token in text] for text in skewed_texts(NUM_TEXTS, SEED)]


def interleave(
    base: BaseModel, texts: Texts, cases: Sequence[Case], rounds: int, is_over: Callable[[], bool]
) -> Mapping[str, list[Pass]]:
    """Time one pass of every case a round, in an order that is drawn anew, until the rounds or the time are over.

    What comes in the first rounds warms up and is left out.
    """
    found: dict[str, list[Pass]] = {case.name: [] for case in cases}
    for number in range(-WARM_UP_ROUNDS, rounds):
        for case in random.Random(number).sample(cases, len(cases)):
            if is_over():
                return found
            one = timed(case.forward, base.device, case.work(texts, number))
            if number >= 0:
                found[case.name].append(one)
    return found


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(forward: Forward, device: torch.device, work: list[Work]) -> Pass:
    """One pass, the device waited for before and after."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    wait_for(device)
    began = time.perf_counter()
    forward.run(work)
    wait_for(device)
    seconds = time.perf_counter() - began
    adapters = {adapter.key: adapter.method.name for _, adapter in work}
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    return Pass(seconds, len(adapters), len(set(adapters.values())), peak)
