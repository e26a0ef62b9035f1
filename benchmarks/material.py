"""What the benchmarks run on: texts of chosen lengths, and adapter folders with seeded random weights.

Random weights are as fast as trained ones; nothing here says anything about accuracy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from server import base_model
from server.base_model import EMBEDDED_ID
from server.errors import BaseModelError
from server.jobs import Job
from server.methods import method_named
from training import dummy

NUM_LABELS = 6
OPTIONS = {"bottleneck": {"size": 24}}
"""Where a benchmark differs from a method's defaults."""
LONGEST = 128


def find_base(spec: str) -> Path:
    """The folder of a base model; raises BaseModelError that says what a command wants to be told."""
    try:
        return base_model.locate(spec)
    except BaseModelError as error:
        raise BaseModelError(f"{error}; name the folder of a base model with --base FOLDER") from error


def skewed_texts(count: int, seed: int = 0) -> list[list[int]]:
    """Token ids of log-normal lengths: about 20 in the mean, 4 to 128, the longest among them."""
    rng = random.Random(seed)
    lengths = [LONGEST, *(min(LONGEST, max(4, round(rng.lognormvariate(2.7, 0.75)))) for _ in range(count - 1))]
    rng.shuffle(lengths)
    return [_text(length, rng) for length in lengths]


def even_texts(count: int, length: int = 64, seed: int = 0) -> list[list[int]]:
    """Token ids of one length."""
    rng = random.Random(seed)
    return [_text(length, rng) for _ in range(count)]


def job(tokens: Sequence[int]) -> Job:
    return Job("benchmark", "0", tuple(tokens), (0,) * len(tokens))


def padded(texts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """A batch as transformers takes it, [texts, longest]."""
    longest = max(map(len, texts))
    return {
        "input_ids": torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts]),
    }


def make_folders(root: Path, method: str, count: int) -> list[str]:
    """Write `count` adapters of a method with the base's native head; returns their names."""
    options = OPTIONS.get(method, {})
    return list(dummy.make(root, method_named(method), count, EMBEDDED_ID, NUM_LABELS, "native", options))


def _text(length: int, rng: random.Random) -> list[int]:
    return [101, *(rng.randrange(1000, 20000) for _ in range(length - 2)), 102]
