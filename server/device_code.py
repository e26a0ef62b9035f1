"""Optional code for GPUs: operations and heads of many adapters at once in Triton, flash attention over packed texts.

Nothing depends on it: what cannot be had, or is wrong about a small batch at the start, is torch's work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from server import logs
from server.attention import Heads
from server.device_memory import does_work
from server.device_trial import Drawn, DrawnHead, attention_error, head_error, operation_error
from server.errors import BaseModelError
from server.grouped import DTYPES, MAX_RANK, GroupedSegments
from server.grouped_heads import GroupedHeads
from server.methods.base import ATTENTION, AttentionSite
from server.varlen_attention import HALF, HEAD_DIM_STEP, MAX_HEAD_DIM, Flash, PutInFront, VarlenAttention

if TYPE_CHECKING:
    from server.base_model import BaseModel

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""The most that kernels may differ from torch in float64, as a part of the largest number in the result."""
TRIED = (
    (
        Drawn("low_rank", 7),
        Drawn("low_rank", 20, 16),
        Drawn("low_rank_of_output", 9, 24, "gelu", True),
        Drawn("low_rank", 11, 64),
        Drawn("low_rank", 3, MAX_RANK),
        Drawn("scale", 5),
        Drawn("scale_input", 30),
        Drawn("shift", 20),
    ),
    (
        Drawn("low_rank", 300),
        Drawn("low_rank_of_output", 200, 24, "relu", True),
        Drawn("low_rank", 70, 64),
        Drawn("scale", 40),
        Drawn("scale_input", 50),
    ),
)
"""The batches of the start: every rank, of few rows (as in all recorded passes) and of many, so that shapes for these
are chosen then and no request waits for it. In float32, as peft writes adapters; for others when one comes."""
TRIED_PREFIXES = ((False, torch.float32), (True, torch.float16), (False, torch.bfloat16))
"""The batches for attention: whether it is causal, and the format of its prefixes."""
Made = TypeVar("Made")


def grouped_segments(base: BaseModel) -> GroupedSegments | None:
    """What lets many adapters act at once, or None where it cannot be had; the reason is logged."""

    def make() -> GroupedSegments:
        from server import triton_kernels

        for d_in, d_out in sorted({(layer.in_features, layer.out_features) for layer in base.layers.values()}):
            for drawn in TRIED:
                check(operation_error(triton_kernels, base.device, base.dtype, d_in, d_out, drawn), base.dtype)
        return GroupedSegments(triton_kernels, base.layers, base.device)

    return _had("grouped operations", base.device, make)


def grouped_heads(base: BaseModel) -> GroupedHeads | None:
    """What runs many adapters' heads at once, or None where it cannot be had; the reason is logged."""

    def make() -> GroupedHeads:
        from server import triton_kernels

        drawn = [
            DrawnHead(layers, num_texts, num_labels, dtype, first_dtype)
            for layers in dict.fromkeys((base.family.linear_head(), base.native_head.layers))
            for num_texts, num_labels, dtype in zip((1, 20, 3), (2, 150, 33), DTYPES, strict=True)
            for first_dtype in dict.fromkeys((dtype, torch.float32))  # of the adapter, or of the base
        ]
        check(head_error(triton_kernels, base.device, base.hidden_size, drawn), torch.float32)
        return GroupedHeads(triton_kernels)

    return _had("classification heads", base.device, make)


def varlen_attention(base: BaseModel) -> VarlenAttention | None:
    """Attention in one call, or None where it cannot be had; the reason is logged."""
    heads = heads_of(base)

    def make(moving: PutInFront | None) -> VarlenAttention:
        if base.dtype not in HALF:
            raise ValueError(f"flash attention takes half precision, and the base model is {base.dtype}")
        if heads.head_dim % HEAD_DIM_STEP or heads.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"flash attention takes no heads of {heads.head_dim} numbers")
        made = VarlenAttention(flash(), moving)
        for is_causal, dtype in TRIED_PREFIXES:
            error = attention_error(made.attend, base.device, base.dtype, heads, is_causal, prefix_dtype=dtype)
            check(error, base.dtype)
        return made

    attention = _had("varlen attention", base.device, lambda: make(None))
    if attention is None:
        return None
    return _had("prefixes in Triton", base.device, lambda: make(_put_in_front())) or attention


def flash() -> Flash:
    """torch's; raises ImportError."""
    from torch.nn.attention.varlen import varlen_attn

    # newer versions of torch want to be told what older ones found out
    takes_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def call(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        longest_query: int,
        longest_key: int,
        scale: float,
        window: tuple[int, int],
    ) -> Tensor:
        more: Any = {"enable_gqa": queries.shape[1] != keys.shape[1]} if takes_gqa else {}
        found = varlen_attn(
            queries,
            keys,
            values,
            query_starts,
            key_starts,
            longest_query,
            longest_key,
            scale=scale,
            window_size=window,
            **more,
        )
        assert isinstance(found, Tensor), "only the output was asked for"
        return found

    return call


def heads_of(base: BaseModel) -> Heads:
    site = base.sites[ATTENTION]
    assert isinstance(site, AttentionSite), "the attention site tells of heads; this is a bug"
    config = base.backbone.config
    return Heads(int(config.num_attention_heads), site.num_heads, site.head_dim)  # type: ignore[union-attr, arg-type]


def check(error: float, dtype: torch.dtype) -> None:
    """Raise ArithmeticError if kernels are further from torch than they may be."""
    if not error <= TOLERANCE[dtype]:
        raise ArithmeticError(
            f"results in {dtype} differ from torch's by {error:.2g}, at most {TOLERANCE[dtype]} is right"
        )


def _put_in_front() -> PutInFront:
    from server import triton_kernels

    return triton_kernels.put_in_front


def _had(part: str, device: torch.device, make: Callable[[], Made]) -> Made | None:
    """What make gives, or None where that raises; raises BaseModelError where the device does nothing more after it."""
    try:
        made = make()
    except Exception as error:  # compilers, drivers and libraries each raise their own; torch does without
        reason = f"{type(error).__name__}: {error}"
        if not does_work(device):
            raise BaseModelError(
                f"{device} does nothing more for this process since {part} failed ({reason}); "
                "start with --kernels off, which does without"
            ) from error
        logs.event("kernels_absent", part=part, reason=reason)
        return None
    logs.event("kernels_ready", part=part)
    return made
