"""Which number format a device multiplies matrices in."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import nn

from server.errors import BaseModelError
from server.frozen_linear import FrozenLinear

DTYPES = ("auto", "float32", "bfloat16")
TRIED_ROWS, TRIED_WIDTHS = 128, (384, 1536)
NUM_ROUNDS = 15
CLEARLY = 1.1
"""So many times as fast has bfloat16 to be: for less, nobody should give up the digits."""


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the device multiplies it faster, else float32. Raises BaseModelError."""
    if dtype not in DTYPES:
        raise BaseModelError(f"dtype `{dtype}` is not supported; take one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.bfloat16 if is_bfloat16_faster(device) else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def is_bfloat16_faster(device: torch.device) -> bool:
    """Whether matrices are multiplied faster in bfloat16 than in float32.

    A processor that has AVX-512's instructions for it, but not AMX, is tried: AMD's are faster with them, some of
    Intel's slower (docs/log.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and _is_clearly_faster()


@cache
def _is_clearly_faster() -> bool:
    return bfloat16_speed() > CLEARLY


@torch.inference_mode()
def bfloat16_speed() -> float:
    """How many times as fast as in float32 this processor multiplies in bfloat16.

    On one thread, by its own time: whatever else runs takes none of it, and no thread waits for another.
    """
    layer, x = nn.Linear(*TRIED_WIDTHS), torch.randn(TRIED_ROWS, TRIED_WIDTHS[0])
    products = {dtype: FrozenLinear([layer], dtype, torch.float32) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(products, float("inf"))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(NUM_ROUNDS):
            for dtype, product in products.items():
                began = time.thread_time()
                product(x)
                best[dtype] = min(best[dtype], time.thread_time() - began)
    finally:
        torch.set_num_threads(num_threads)
    return best[torch.float32] / best[torch.bfloat16]
