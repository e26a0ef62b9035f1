"""Attention over packed sequences, registered with transformers under our own name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from server.methods.base import KeysValues

NAME = "adaptermux_packed"


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each sequence lies on the token axis, and the prefix that precedes it, if any.

    Sequence i covers starts[i] to starts[i + 1]; the last entry is the end.
    """

    starts: tuple[int, ...]
    prefixes: tuple[KeysValues | None, ...]

    def sequences(self) -> Iterator[tuple[int, int, KeysValues | None]]:
        return zip(self.starts[:-1], self.starts[1:], self.prefixes, strict=True)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packing: Packing,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Let every sequence attend to its prefix and itself only.

    sliding_window: tokens of an encoder see those that are fewer than that many places away. Decoders have no texts
    that are longer than their window (`server.families.llama.Llama.length_limit`).
    query [1, heads, tokens, head_dim]; key, value [1, kv_heads, tokens, head_dim].
    Returns [1, tokens, heads, head_dim], as transformers expects, and no attention weights.
    """
    out = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    grouped = key.shape[1] != query.shape[1]
    for start, stop, prefix in packing.sequences():
        k, v, mask = key[:, :, start:stop], value[:, :, start:stop], None
        is_causal = bool(module.is_causal) and stop - start > 1
        if prefix is not None:
            layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module types its attributes widely
            k = torch.cat((prefix.keys[layer, None].to(k.dtype), k), 2)  # [1, kv_heads, prefix + length, head_dim]
            v = torch.cat((prefix.values[layer, None].to(v.dtype), v), 2)
            if is_causal:
                length = stop - start
                seen = torch.ones(length, k.shape[2], dtype=torch.bool, device=k.device)
                mask, is_causal = seen.tril(k.shape[2] - length), False  # all of the prefix, and what came before
        elif sliding_window is not None and not is_causal and stop - start > sliding_window:
            places = torch.arange(stop - start, device=k.device)
            mask = (places[:, None] - places).abs() < sliding_window  # [length, length]
        context = scaled_dot_product_attention(
            query[:, :, start:stop], k, v, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=grouped
        )  # [1, heads, length, head_dim]
        out[:, start:stop] = context.transpose(1, 2)
    return out, None


AttentionInterface.register(NAME, packed_attention)
