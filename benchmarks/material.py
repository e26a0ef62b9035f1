"""What the benchmarks run on: texts of chosen lengths, and adapter folders with seeded random weights.

Random weights are as fast as trained ones; nothing here says anything about accuracy.
"""

from __future__ import annotations

import importlib
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from server.base_model import EMBEDDED_ID
from server.families import Family
from server.jobs import Job
from server.methods import Method, methods
from training.model import PooledClassifier

NUM_LABELS = 6
OPTIONS = {"bottleneck": {"size": 24}}
"""Where a benchmark differs from a method's defaults."""
LONGEST = 128
WEIGHTS = "adapter_model.safetensors"


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


def make_folders(root: Path, method: Method[object], family: Family, count: int) -> list[str]:
    """Write `count` adapters of a method with the base's native head; returns their names."""
    if method.peft_module is not None:
        importlib.import_module(method.peft_module)
    torch.manual_seed(0)
    options = {option: default for option, (default, _, _) in method.options.items()}
    config = method.peft_config(family, options | OPTIONS.get(method.name, {}))
    model = get_peft_model(PooledClassifier.load(EMBEDDED_ID, NUM_LABELS, "native"), config)
    names = [f"{method.name}-{index}" for index in range(count)]
    model.save_pretrained(str(root / names[0]))
    tensors = load_file(root / names[0] / WEIGHTS)
    for name in names:
        if not (root / name).exists():
            shutil.copytree(root / names[0], root / name)
        changed = {key: tensor + torch.randn_like(tensor) * 0.02 for key, tensor in tensors.items()}
        save_file(changed, root / name / WEIGHTS)
    return names


def method_named(name: str) -> Method[object]:
    return methods()[name]


def _text(length: int, rng: random.Random) -> list[int]:
    return [101, *(rng.randrange(1000, 20000) for _ in range(length - 2)), 102]
