"""Adapters so different that one in another's place is seen, and the proof that they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import peft
import torch
from peft.utils.peft_types import PeftType
from torch import Tensor

from benchmarks.gpu_check.report import Report, part_of
from benchmarks.material import job, skewed_texts
from server import adapter_folder
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.forward import Forward, Work, load_base
from server.loaded_adapter import LoadedAdapter
from server.methods import method_named
from server.store import Store
from training import dummy

TIMED, BARE = ("lora", "ia3", "prefix", "bottleneck"), "head"
METHODS = (*TIMED, "bitfit", BARE)
NOISES = (0.1, 0.3, 1.0, 3.0)
"""Of adapters' weights, the first that is enough: with much of it bfloat16 is far from float32 (docs/log.md)."""
LOGIT_TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-3}
"""Of the largest logit of an adapter."""
NEEDED = 4 * LOGIT_TOLERANCE[torch.bfloat16]
"""Answers that must not be taken for each other are so far apart."""
NUM_CONTROL_TEXTS = 8
Texts = Sequence[Sequence[int]]


def known_methods(report: Report) -> tuple[str, ...]:
    """Those that the installed peft can make adapters of."""
    found = []
    for name in METHODS:
        method = method_named(name)
        if method.peft_module is None and method.peft_type not in PeftType.__members__:
            report.leave_out(f"{name}: peft {peft.__version__} has no {method.peft_type}")
        else:
            found.append(name)
    return tuple(found)


def make_sets(
    root: Path, methods: Sequence[str], base: BaseModel, num_sets: int, report: Report
) -> list[list[AdapterFolder]]:
    """Sets of one adapter of each method, which have nothing in common but their shapes.

    Their weights are as far from those that a method begins with as this base needs: the answers of an adapter have to
    be others with another's weights, or with none, under its own head. Where no noise does that, a check could not see
    that weights are missing or another's; that is a failure of its own. Plain torch says what the answers are.
    """
    same = load_base(str(base.folder), str(base.device), "bfloat16")  # a base is of one forward pass only
    plain = Forward(same, uses_kernels=False, uses_graphs=False)
    sets: list[list[AdapterFolder]] = [[] for _ in range(num_sets)]
    texts = known(skewed_texts(NUM_CONTROL_TEXTS), base.vocabulary_size)
    with closing(Store(base)) as store:
        for method in methods:
            for noise in NOISES if method != BARE else NOISES[:1]:
                place = root / f"noise-{noise}"
                pair = [_make(place, method, base, seed, noise) for seed in range(2)]
                one, other = (store.load(folder) for folder in pair)
                apart = min(_apart(plain, one, other, texts), _apart(plain, other, one, texts))
                if apart > NEEDED:
                    break
            if method != BARE:
                report.figures.setdefault("control", {})[method] = {"noise": noise, "apart": round(apart, 3)}
                if not apart > NEEDED:
                    report.fail(
                        f"control of {method}: with another's weights, or with none, logits differ by {apart:.2g} "
                        f"only, {NEEDED:.2g} are needed to see that they are wrong: the check proves nothing here"
                    )
            folders = [*pair, *(_make(place, method, base, seed, noise) for seed in range(2, num_sets))]
            for some, folder in zip(sets, folders, strict=True):
                some.append(folder)
    return sets


def answers(forward: Forward, adapter: LoadedAdapter, texts: Texts) -> Tensor:
    """[texts, labels]"""
    return torch.stack(forward.run([(job(text), adapter) for text in texts]))


def known(texts: Texts, vocabulary_size: int) -> list[list[int]]:
    """The texts as ids that a base knows."""
    return [[token % vocabulary_size for token in text] for text in texts]


def filling(num_tokens: int, adapters: Sequence[LoadedAdapter], base: BaseModel, seed: int) -> list[Work]:
    """A batch of about three quarters of so many tokens, one text much longer than the others, of adapters in turn."""
    rng = random.Random(seed)
    total = num_tokens * 3 // 4
    longest = min(total // 4, base.max_length // 2)
    num_texts = max(len(adapters), num_tokens // 24)
    mean = (total - longest) // max(1, num_texts - 1)
    lengths = [longest, *(rng.randint(mean * 2 // 3, mean * 4 // 3) for _ in range(num_texts - 1))]
    texts = [[rng.randrange(1, base.vocabulary_size) for _ in range(max(3, length))] for length in lengths]
    return [(job(text), adapters[(number + seed) % len(adapters)]) for number, text in enumerate(texts)]


def _apart(plain: Forward, one: LoadedAdapter, other: LoadedAdapter, texts: Texts) -> float:
    """How far an adapter's answers are from those with the weights of `other`, or with none, under its own head."""
    expected = answers(plain, one, texts)
    wrong = (replace(other, head=one.head), replace(one, rows={}))
    return min(part_of(answers(plain, some, texts), expected) for some in wrong)


def _make(root: Path, method: str, base: BaseModel, seed: int, noise: float) -> AdapterFolder:
    place = root / f"set-{seed}"
    (name,) = dummy.make(place, method_named(method), 1, str(base.folder), seed=seed, noise=noise)
    return adapter_folder.read(place, name, base)
