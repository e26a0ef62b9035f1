"""Attention over packed texts of any lengths in one call: torch's flash attention, in half precision on a GPU.

Every text's prefix is put in front of its own keys and values first. `server.attention.attend` computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from server.attention import Heads, Packing, attend
from server.grouped import DTYPES, upload
from server.methods.base import KeysValues

HALF = (torch.bfloat16, torch.float16)
HEAD_DIM_STEP, MAX_HEAD_DIM = 8, 256


class Flash(Protocol):
    """`torch.nn.attention.varlen.varlen_attn`.

    queries [rows, heads, head_dim], keys and values alike; starts int32. window: how many keys a query sees to its left
    and right, -1 for all, counted from the place that it has when the ends of both are laid one upon the other.
    """

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        longest_query: int,
        longest_key: int,
        scale: float,
        window: tuple[int, int],
    ) -> Tensor: ...


class PutInFront(Protocol):
    """`server.triton_kernels.put_in_front`."""

    def __call__(
        self, keys: Tensor, values: Tensor, sources: Tensor, prefixes: Tensor, layer: int, head_dim: int
    ) -> tuple[Tensor, Tensor]: ...


class Lines:
    """Where every text's keys lie once its prefix precedes them; the texts keep their order.

    starts: text i covers rows starts[i] to starts[i + 1].
    """

    def __init__(self, packing: Packing, device: torch.device) -> None:
        self._packing, self._device = packing, device
        self._prefix_lengths = [0 if prefix is None else prefix.keys.shape[2] for prefix in packing.prefixes]
        lengths = [sum(both) for both in zip(self._prefix_lengths, packing.lengths, strict=True)]
        self.starts, self.longest = (0, *accumulate(lengths)), max(lengths)
        self.has_prefixes = any(self._prefix_lengths)

    @cached_property
    def key_starts(self) -> Tensor:
        return upload(self.starts, self._device).int()

    @cached_property
    def token_starts(self) -> Tensor:
        return upload(self._packing.starts, self._device).int()

    @cached_property
    def read_starts(self) -> Tensor:
        return upload(self._packing.read_starts, self._device).int()

    @cached_property
    def has_known_prefixes(self) -> bool:
        """Whether `prefixes` can describe them."""
        return all(
            keys.dtype == values.dtype and keys.dtype in DTYPES and keys.stride() == values.stride()
            for keys, values in filter(None, self._packing.prefixes)
        ) and all(keys.stride(3) == 1 for keys, _ in filter(None, self._packing.prefixes))

    @cached_property
    def sources(self) -> Tensor:
        """Where every row comes from, [rows, 2]: the text whose prefix it is and the row there, or -1 and the token."""
        found: list[int] = []
        for text, (prefix, (start, stop)) in enumerate(
            zip(self._prefix_lengths, pairwise(self._packing.starts), strict=True)
        ):
            for row in range(prefix):
                found += (text, row)
            for token in range(start, stop):
                found += (-1, token)
        return upload(found, self._device).view(-1, 2)

    @cached_property
    def prefixes(self) -> Tensor:
        """By text: addresses of keys and values, strides of layer, head and row, and the format; [texts, 6]."""
        found: list[int] = []
        for prefix in self._packing.prefixes:
            found += (0,) * 6 if prefix is None else _describe(prefix)
        return upload(found, self._device).view(-1, 6)


class VarlenAttention:
    """Attends as `server.attention.attend` does. Owned by the engine thread."""

    def __init__(self, flash: Flash, put_in_front: PutInFront | None) -> None:
        """put_in_front: what moves keys and values; None: torch, text by text."""
        self._flash, self._put_in_front = flash, put_in_front
        self._lines: WeakKeyDictionary[Packing, Lines] = WeakKeyDictionary()

    def attend(
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
    ) -> Tensor:
        lines = self._lines.get(packing)
        if lines is None:
            lines = self._lines[packing] = Lines(packing, queries.device)
        if lines.has_prefixes and window is not None:  # it would count the prefix as part of the window
            return attend(packing, heads, layer, scale, queries, keys, values, reads_only, is_causal, window)
        if not lines.has_prefixes:
            keys, values = keys[: lines.starts[-1]], values[: lines.starts[-1]]
        elif self._put_in_front is not None and lines.has_known_prefixes:
            keys, values = self._put_in_front(keys, values, lines.sources, lines.prefixes, layer, heads.head_dim)
        else:
            keys, values = put_in_front(packing, layer, keys, values)
        starts = packing.read_starts if reads_only else packing.starts
        context = self._flash(
            queries[: starts[-1]].view(-1, heads.num_queries, heads.head_dim),
            keys.view(-1, heads.num_keys, heads.head_dim),
            values.view(-1, heads.num_keys, heads.head_dim),
            lines.read_starts if reads_only else lines.token_starts,
            lines.key_starts,
            max(stop - start for start, stop in pairwise(starts)),
            lines.longest,
            scale,
            (-1, 0) if is_causal else (-1, -1) if window is None else (window, window),
        ).flatten(1)
        missing = len(queries) - len(context)
        return nn.functional.pad(context, (0, 0, 0, missing)) if missing else context


def put_in_front(packing: Packing, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens, width] with every text's prefix in front of them, [prefix + tokens, width] each."""
    both: tuple[list[Tensor], list[Tensor]] = ([], [])
    for prefix, (start, stop) in zip(packing.prefixes, pairwise(packing.starts), strict=True):
        for parts, rows, in_front in zip(both, (keys, values), prefix or (None, None), strict=True):
            if in_front is not None:
                parts.append(in_front[layer].transpose(0, 1).flatten(1).to(rows.dtype))  # [prefix, width]
            parts.append(rows[start:stop])
    return torch.cat(both[0]), torch.cat(both[1])


def _describe(prefix: KeysValues) -> Sequence[int]:
    keys, values = prefix
    return keys.data_ptr(), values.data_ptr(), *keys.stride()[:3], DTYPES.index(keys.dtype)
