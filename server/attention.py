"""Attention over packed texts: each attends to its prefix and to itself, neighbours of one length at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from server.methods.base import KeysValues

NAME = "adaptermux_packed"


class Run(NamedTuple):
    """Neighbouring texts with equally many tokens, read rows and prefix rows.

    start, row_start: where the first of them lies on the token axis and on the axis of read rows.
    prefixes: one a text, or none at all.
    """

    start: int
    row_start: int
    num_texts: int
    length: int
    num_rows: int
    prefixes: tuple[KeysValues, ...]


class Packing:
    """How the texts of one batch lie on the token axis, and the prefix that precedes each, if any.

    Text i covers tokens starts[i] to starts[i + 1]. reads[i] is the only position of text i whose output is wanted
    from the last layer, or None for all of them; there text i covers rows read_starts[i] to read_starts[i + 1].
    """

    def __init__(
        self,
        lengths: Sequence[int],
        prefixes: Sequence[KeysValues | None],
        reads: Sequence[int | None],
        device: torch.device,
    ) -> None:
        self.lengths, self.prefixes, self._reads, self._device = lengths, prefixes, reads, device
        self._num_rows = [length if read is None else 1 for length, read in zip(lengths, reads, strict=True)]
        self.starts = (0, *accumulate(lengths))
        self.read_starts = (0, *accumulate(self._num_rows))
        self._masks: dict[tuple[object, ...], Tensor | None] = {}

    @property
    def reads_all(self) -> bool:
        """Whether the last layer's output is wanted for every token."""
        return self.read_starts[-1] == self.starts[-1]

    @cached_property
    def read_rows(self) -> Tensor:
        """Which tokens are read, [rows]."""
        rows: list[int] = []
        for start, length, read in zip(self.starts, self.lengths, self._reads, strict=False):
            rows.extend(range(start, start + length) if read is None else (start + read,))
        return torch.tensor(rows, device=self._device)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The texts in order, neighbours that can share one product together."""

        def kind(text: int) -> tuple[int, int, int]:
            prefix = self.prefixes[text]
            return self.lengths[text], self._num_rows[text], prefix.keys.shape[2] if prefix is not None else 0

        runs = []
        for (length, num_rows, _), group in groupby(range(len(self.lengths)), key=kind):
            texts = list(group)
            prefixes = tuple(prefix for text in texts if (prefix := self.prefixes[text]) is not None)
            first = texts[0]
            runs.append(Run(self.starts[first], self.read_starts[first], len(texts), length, num_rows, prefixes))
        return tuple(runs)

    def mask(self, run: Run, is_causal: bool, window: int | None) -> Tensor | None:
        """Which keys the queries of a run may look at, [tokens, prefix + tokens]; None where it is all of them.

        A causal query sees the whole prefix; window: how far a token may look, both ways.
        """
        prefix = run.prefixes[0].keys.shape[2] if run.prefixes else 0
        key = (run.length, prefix, is_causal, window)
        if key not in self._masks:
            position = torch.arange(run.length, device=self._device)
            distance = position[:, None] - position  # of query and key
            seen = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
            if window is not None:
                seen &= distance.abs() <= window
            self._masks[key] = None if bool(seen.all()) else nn.functional.pad(seen, (prefix, 0), value=True)
        return self._masks[key]


class Heads(NamedTuple):
    """Heads of an attention layer: num_queries of them share num_keys heads of keys and values, each head_dim wide."""

    num_queries: int
    num_keys: int
    head_dim: int


class Attend(Protocol):
    """`attend`, or what computes the same."""

    def __call__(
        self,
        packing: Packing,
        heads: Heads,
        layer: int,
        scale: float,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        reads_only: bool = False,
        is_causal: bool = False,
        window: int | None = None,
    ) -> Tensor: ...


def attend(
    packing: Packing,
    heads: Heads,
    layer: int,
    scale: float,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    reads_only: bool = False,
    is_causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Let every query attend to its text's prefix and tokens.

    queries [tokens, heads x head_dim], or [read rows, ...] where it reads_only; keys and values [tokens, ...]. Returns
    as many rows as there are queries; those behind the last text's are zero.
    """
    contexts = []
    for run in packing.runs:
        start, num_queries = (run.row_start, run.num_rows) if reads_only else (run.start, run.length)
        q = _heads_first(queries, start, run.num_texts, num_queries, heads.num_queries)
        k = _heads_first(keys, run.start, run.num_texts, run.length, heads.num_keys)
        v = _heads_first(values, run.start, run.num_texts, run.length, heads.num_keys)
        if run.prefixes:
            k = torch.cat((_stack([p.keys[layer] for p in run.prefixes], k), k), 2)
            v = torch.cat((_stack([p.values[layer] for p in run.prefixes], v), v), 2)
            # [texts, heads, prefix + tokens, head_dim]
        mask = packing.mask(run, is_causal, window) if is_causal or window is not None else None
        context = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=heads.num_keys != heads.num_queries
        )
        contexts.append(context.transpose(1, 2).flatten(2).flatten(0, 1))  # [texts x queries, heads x head_dim]
    context = torch.cat(contexts)
    return nn.functional.pad(context, (0, 0, 0, len(queries) - len(context)))


def _heads_first(rows: Tensor, start: int, num_texts: int, length: int, num_heads: int) -> Tensor:
    """Rows of a run as [texts, heads, tokens, head_dim]; a view."""
    some = rows[start : start + num_texts * length]
    return some.view(num_texts, length, num_heads, -1).transpose(1, 2)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packing: Packing,
    attending: Attend = attend,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls for every attention layer of its own model code.

    sliding_window: tokens of an encoder see those that are fewer than that many places away. Decoders have no texts
    that are longer than their window (`server.families.llama.Llama.length_limit`).
    query [1, heads, tokens, head_dim]; key, value [1, kv_heads, tokens, head_dim].
    Returns [1, tokens, heads, head_dim], as transformers expects, and no attention weights.
    """
    heads = Heads(query.shape[1], key.shape[1], query.shape[3])
    q, k, v = (part[0].transpose(0, 1).flatten(1) for part in (query, key, value))  # [tokens, heads x head_dim]
    layer = int(getattr(module, "layer_idx", 0))  # only needed for prefixes, which layers without a number do not take
    is_causal = bool(module.is_causal)
    window = sliding_window - 1 if sliding_window is not None and not is_causal else None
    context = attending(packing, heads, layer, scaling, q, k, v, False, is_causal, window)
    return context.view(1, -1, heads.num_queries, heads.head_dim), None


def _stack(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Prefixes of one length, [heads, prefix, head_dim] each, as [texts, heads, prefix, head_dim]."""
    same = all(part.data_ptr() == parts[0].data_ptr() for part in parts)
    stacked = parts[0].expand(len(parts), -1, -1, -1) if same else torch.stack(list(parts))
    return stacked.to(like.dtype)


AttentionInterface.register(NAME, packed_attention)
