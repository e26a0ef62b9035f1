"""Triton's kernels and flash attention against torch in float64: what sets programs apart first, the rest as drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch

from benchmarks.gpu_check.report import IsOver, Report, short
from server import device_code
from server.attention import Heads
from server.device_code import TOLERANCE
from server.device_trial import Drawn, attention_error, operation_error
from server.grouped import MAX_RANK
from server.products import ACTIVATIONS
from server.varlen_attention import HALF, VarlenAttention

SQUARE = (384, 384)
WIDTHS = (SQUARE, (384, 1536), (1536, 384), (2048, 2048), (2048, 512), (8192, 2048), (72, 1000))
RANKS = (1, 8, 16, 24, 64, 100, MAX_RANK)
FEW, MANY = 5, 90
"""Rows of an adapter: on either side of where programs take more of them."""
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = (BFLOAT16, FLOAT16, FLOAT32)
NUM_DRAWN = 24
ALL_HEADS = (Heads(12, 12, 32), Heads(12, 12, 64), Heads(32, 8, 64), Heads(16, 2, 128), Heads(4, 4, 256))
MASKS = ((False, None, False), (True, None, False), (False, 64, False), (False, None, True))
"""is_causal, window, reads_only"""
BATCHES = ([(128, 0)], [(1, 0), (1, 1), (1, 200)], [(length, length % 3 * 10) for length in range(1, 300, 7)])


class Operations(NamedTuple):
    """A batch at one site. weights: the format of the adapters' tensors."""

    dtype: torch.dtype
    weights: torch.dtype
    widths: tuple[int, int]
    num_rows: int
    ranks: Sequence[int]

    def drawn(self) -> list[Drawn]:
        """All kinds of operations side by side."""
        low_rank = [Drawn("low_rank", self.num_rows + rank % 7, rank, None, False, self.weights) for rank in self.ranks]
        of_output = [
            Drawn(
                "low_rank_of_output", self.num_rows, rank, (*ACTIVATIONS,)[rank % len(ACTIVATIONS)], True, self.weights
            )
            for rank in self.ranks
        ]
        vectors = [Drawn(kind, self.num_rows, dtype=self.weights) for kind in ("scale", "scale_input", "shift")]
        return low_rank + of_output + vectors


class Attending(NamedTuple):
    """A batch of texts, each with its tokens and the rows of its prefix."""

    dtype: torch.dtype
    heads: Heads
    texts: Sequence[tuple[int, int]]
    mask: tuple[bool, int | None, bool]
    prefix_dtype: torch.dtype


# a program is one of a rank rounded up, rows (few or many), formats, and the parts that a width is read in; what the
# server runs most has all ranks at one width and each width once, other formats have a low and a high rank
FIRST = (
    Operations(BFLOAT16, FLOAT32, SQUARE, FEW, (1, 8, 16)),
    Operations(BFLOAT16, FLOAT32, SQUARE, MANY, (8, 24)),
    Operations(BFLOAT16, FLOAT32, SQUARE, FEW, (24, 64, 100, MAX_RANK)),
    *(Operations(BFLOAT16, FLOAT32, widths, MANY, (8,)) for widths in WIDTHS[1:]),
    Operations(FLOAT32, FLOAT32, SQUARE, FEW, (8, MAX_RANK)),
    Operations(BFLOAT16, BFLOAT16, SQUARE, FEW, (8,)),
    Operations(BFLOAT16, FLOAT16, SQUARE, FEW, (8,)),
    Operations(BFLOAT16, FLOAT32, SQUARE, MANY, (64,)),
    Operations(FLOAT32, FLOAT32, SQUARE, MANY, (16,)),
)


def operations() -> list[Operations]:
    """Those that distinguish programs, and some of all that there could be."""
    others = [
        Operations(dtype, weights, widths, num_rows, ranks)
        for dtype, widths, num_rows in product(DTYPES, WIDTHS, (FEW, MANY))
        for weights in dict.fromkeys((FLOAT32, dtype))
        for ranks in ((1, 24), (16, 100), (8, 64), (MAX_RANK,))
    ]
    return [*FIRST, *random.Random(0).sample(others, NUM_DRAWN)]


def attentions() -> list[Attending]:
    """All heads in the format that the server runs, then all that there are, as drawn."""
    first = [Attending(BFLOAT16, heads, BATCHES[2], mask, FLOAT32) for heads in ALL_HEADS for mask in MASKS]
    others = [Attending(*case) for case in product(HALF, ALL_HEADS, BATCHES, MASKS, DTYPES)]
    return [*first, *random.Random(0).sample(others, len(others))]


def check_operations(device: torch.device, report: Report, is_over: IsOver, cases: Sequence[Operations]) -> None:
    """What adapters do at a site."""
    from server import triton_kernels

    def run(case: Operations) -> None:
        error = operation_error(triton_kernels, device, case.dtype, *case.widths, case.drawn())
        report.note(f"operations, {short(case.dtype)}", str(case), error, TOLERANCE[case.dtype])

    report.try_each("operations", cases, min(len(FIRST), len(cases)), is_over, run)


def check_attention(device: torch.device, report: Report, is_over: IsOver, cases: Sequence[Attending]) -> None:
    """Every kind of heads and mask, with and without prefixes, with one text and with many."""
    from server import triton_kernels

    varlen = VarlenAttention(device_code.flash(), triton_kernels.put_in_front).attend

    def run(case: Attending) -> None:
        dtype, heads, texts, mask, prefix_dtype = case
        error = attention_error(varlen, device, dtype, heads, *mask, texts, prefix_dtype)
        report.note(f"attention, {short(dtype)}", str(case), error, TOLERANCE[dtype])

    report.try_each("attention", cases, len(ALL_HEADS) * len(MASKS), is_over, run)
