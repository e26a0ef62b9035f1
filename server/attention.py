"""Attention over packed sequences, registered with transformers under our own name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "adaptermux_packed"


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each sequence lies on the token axis: starts[i] to starts[i + 1]; the last entry is the end."""

    starts: tuple[int, ...]

    @property
    def bounds(self) -> zip[tuple[int, int]]:
        return zip(self.starts[:-1], self.starts[1:], strict=True)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packing: Packing,
    **_: object,
) -> tuple[Tensor, None]:
    """Let every sequence attend to itself only.

    query [1, heads, tokens, head_dim]; key, value [1, kv_heads, tokens, head_dim].
    Returns [1, tokens, heads, head_dim], as transformers expects, and no attention weights.
    """
    out = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    grouped = key.shape[1] != query.shape[1]
    for start, stop in packing.bounds:
        context = scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            is_causal=bool(module.is_causal) and stop - start > 1,
            scale=scaling,
            enable_gqa=grouped,
        )  # [1, heads, length, head_dim]
        out[:, start:stop] = context.transpose(1, 2)
    return out, None


AttentionInterface.register(NAME, packed_attention)
