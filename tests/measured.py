"""Rows of evidence as a grid would write them, made up from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decision.rows import MAJORITY, Predictions, Provenance, QualityRow, TrialRow

PROVENANCE = Provenance(
    machine="AMD EPYC, 2 cores",
    versions={"python": "3.11", "torch": "2.13.0"},
    commit="0123456789ab",
    command="adaptermux-train grid --plan made-up.toml",
    created="2026-11-22T09:00:00Z",
)


@dataclass(frozen=True)
class Candidate:
    name: str
    method: str
    skill: float
    """Log-odds of being right that it adds to a text's own."""
    num_bytes: int
    learns: bool = True
    """Has a learning rate, steps and a curve."""


CANDIDATES = (
    Candidate("majority", "majority", -3.0, 0, learns=False),
    Candidate("probe", "probe", -0.9, 9_300, learns=False),
    Candidate("head", "head", -0.8, 9_400),
    Candidate("bitfit", "bitfit", 0.0, 119_000),
    Candidate("ia3", "ia3", -0.2, 64_000),
    Candidate("lora-qv-8", "lora", 0.1, 306_000),
    Candidate("lora-all-8", "lora", 0.35, 1_340_000),
    Candidate("houlsby-8", "bottleneck", 0.2, 318_000),
    Candidate("houlsby-32", "bottleneck", 0.3, 1_210_000),
    Candidate("pfeiffer-16", "bottleneck", 0.2, 310_000),
    Candidate("prefix-16", "prefix", -0.1, 304_000),
    Candidate("full", "full", 0.4, 90_900_000),
)
TASKS = {"trec": 1.6, "sst2": 1.4, "sick": 0.9, "banking77": 0.6}
"""Task -> log-odds of being right on it."""


def rows(
    tasks: Mapping[str, float] = TASKS,
    sizes: Sequence[int] = (100, 500, 2000),
    seeds: Sequence[int] = range(5),
    candidates: Sequence[Candidate] = CANDIDATES,
    num_items: int = 400,
    num_trials: int = 4,
    first_task: int = 0,
) -> list[QualityRow | TrialRow]:
    """Every cell of a grid, in the grid's order. first_task: whose number its randomness comes from."""
    return list(_rows(tasks, sizes, seeds, candidates, num_items, num_trials, first_task))


def _rows(
    tasks: Mapping[str, float],
    sizes: Sequence[int],
    seeds: Sequence[int],
    candidates: Sequence[Candidate],
    num_items: int,
    num_trials: int,
    first_task: int,
) -> Iterator[QualityRow | TrialRow]:
    for task_index, (task, ease) in enumerate(tasks.items(), first_task):
        generator = np.random.default_rng(task_index)
        truth = generator.integers(0, 6, num_items)
        ease_of_item = generator.normal(0, 1.5, num_items)
        for size in sizes:
            level = ease + 0.45 * np.log(size / 300)
            for index, candidate in enumerate(candidates):
                shared = {"plan": "made-up", "task": task, "candidate": candidate.name, "method": candidate.method,
                          "train_rows": size, "train_s": 9.0, "peak_memory_bytes": 700 * 2**20,
                          "provenance": PROVENANCE}  # fmt: skip
                for trial in range(num_trials if candidate.learns else 0):
                    noise = np.random.default_rng([task_index, size, index, 90, trial]).normal(0, 0.02)
                    yield TrialRow(
                        **shared, cell=f"{task}-{size}-{index}-trial-{trial}",
                        validation_nll=0.5, seed=90, recipe={"learning_rate": 1e-3 * 2**trial}, train_cpu_s=5.0,
                        validation_accuracy=float(np.clip(0.8 + noise, 0, 1)),
                    )  # fmt: skip
                for seed in seeds:
                    of_seed = np.random.default_rng([task_index, size, seed]).normal(0, 0.15)
                    own = np.random.default_rng([task_index, size, index, seed])
                    odds = level + ease_of_item + candidate.skill + of_seed + own.normal(0, 0.12)
                    hits = own.random(num_items) < 1 / (1 + np.exp(-odds))
                    if candidate.method == MAJORITY:
                        hits = truth == 2
                    yield quality_row(shared, seed, truth, hits, candidate)


def quality_row(
    shared: Mapping[str, Any], seed: int, truth: np.ndarray[Any, Any], hits: np.ndarray[Any, Any], candidate: Candidate
) -> QualityRow:
    """truth, hits [items]."""
    accuracy = float(hits.mean())
    return QualityRow(
        **shared,
        cell="-".join(map(str, (shared["task"], shared["train_rows"], candidate.name, seed))),
        validation_nll=0.5,
        seed=seed,
        recipe={"learning_rate": 2e-3} if candidate.learns else {},
        validation_accuracy=accuracy,
        train_cpu_s=30.0 if candidate.learns else 0.1,
        num_labels=6,
        is_pair=False,
        test_accuracy=accuracy,
        test_macro_f1=accuracy * 0.98,
        test_ece=0.06,
        test_ece_calibrated=0.03,
        temperature=1.2,
        num_adapter_parameters=max(0, candidate.num_bytes - 9_300) // 4,
        num_head_parameters=2_310 if candidate.num_bytes else 0,
        adapter_bytes=candidate.num_bytes,
        num_steps=300 if candidate.learns else 0,
        curve=[(100, accuracy * 0.9), (200, accuracy * 0.97), (300, accuracy)] if candidate.learns else [],
        predictions=Predictions.pack(truth, np.where(hits, truth, (truth + 1) % 6)),
    )
