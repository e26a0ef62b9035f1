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
PREFIX_FIELDS = 6


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


class Lines(Protocol):
    """Where every text's keys lie once its prefix precedes them; the texts keep their order.

    Text i has the tokens token_starts[i] to token_starts[i + 1], the read rows read_starts[i] to read_starts[i + 1] and
    the keys key_starts[i] to key_starts[i + 1]; all int32. longest_text, longest_key: no text has more tokens, or keys.
    """

    @property
    def num_tokens(self) -> int: ...
    @property
    def longest_text(self) -> int: ...
    @property
    def longest_key(self) -> int: ...
    @property
    def token_starts(self) -> Tensor: ...
    @property
    def read_starts(self) -> Tensor: ...
    @property
    def key_starts(self) -> Tensor: ...
    @property
    def has_prefixes(self) -> bool: ...
    @property
    def has_known_prefixes(self) -> bool:
        """Whether `prefixes` can describe them."""
        ...

    @property
    def sources(self) -> Tensor:
        """Where every row of the keys comes from, [rows, 2]: the text whose prefix it is and the row there, or -1 and
        the token."""
        ...

    @property
    def prefixes(self) -> Tensor:
        """By text: addresses of keys and values, strides of layer, head and row, and the format; [texts, 6]."""
        ...


class BatchLines:
    """The `Lines` of one batch."""

    def __init__(self, packing: Packing, device: torch.device) -> None:
        self._packing, self._device = packing, device
        self.num_tokens = packing.starts[-1]
        self.longest_text = max(packing.lengths)
        self.starts = (0, *accumulate(key_lengths(packing)))
        self.longest_key = max(stop - start for start, stop in pairwise(self.starts))
        self.has_prefixes = self.starts != packing.starts

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
        return are_known(self._packing)

    @cached_property
    def sources(self) -> Tensor:
        found: list[int] = []
        for text, ((first, last), (start, stop)) in enumerate(
            zip(pairwise(self.starts), pairwise(self._packing.starts), strict=True)
        ):
            for row in range(last - first - (stop - start)):
                found += (text, row)
            for token in range(start, stop):
                found += (-1, token)
        return upload(found, self._device).view(-1, 2)

    @cached_property
    def prefixes(self) -> Tensor:
        return upload(prefix_numbers(self._packing), self._device).view(-1, PREFIX_FIELDS)


class VarlenAttention:
    """Attends as `server.attention.attend` does. Owned by the engine thread."""

    def __init__(self, flash: Flash, put_in_front: PutInFront | None) -> None:
        """put_in_front: what moves keys and values; None: torch, text by text."""
        self._flash, self._put_in_front = flash, put_in_front
        self._lines: WeakKeyDictionary[Packing, Lines] = WeakKeyDictionary()

    @property
    def moves_prefixes(self) -> bool:
        """Whether the prefixes of a batch are moved in one call, which finds them by their addresses."""
        return self._put_in_front is not None

    def use(self, packing: Packing, lines: Lines) -> None:
        """Attend to a batch by these lines, not by its own."""
        self._lines[packing] = lines

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
            lines = self._lines[packing] = BatchLines(packing, queries.device)
        if lines.has_prefixes and window is not None:  # it would count the prefix as part of the window
            return attend(packing, heads, layer, scale, queries, keys, values, reads_only, is_causal, window)
        if not lines.has_prefixes:
            keys, values = keys[: lines.num_tokens], values[: lines.num_tokens]
        elif self._put_in_front is not None and lines.has_known_prefixes:
            keys, values = self._put_in_front(keys, values, lines.sources, lines.prefixes, layer, heads.head_dim)
        else:
            keys, values = put_in_front(packing, layer, keys, values)
        num_rows = packing.read_starts[-1] if reads_only else lines.num_tokens
        context = self._flash(
            queries[:num_rows].view(-1, heads.num_queries, heads.head_dim),
            keys.view(-1, heads.num_keys, heads.head_dim),
            values.view(-1, heads.num_keys, heads.head_dim),
            lines.read_starts if reads_only else lines.token_starts,
            lines.key_starts,
            max(stop - start for start, stop in pairwise(packing.read_starts)) if reads_only else lines.longest_text,
            lines.longest_key,
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


def key_lengths(packing: Packing) -> list[int]:
    """How many keys every text has, its prefix's included."""
    return [
        length + (0 if prefix is None else prefix.keys.shape[2])
        for length, prefix in zip(packing.lengths, packing.prefixes, strict=True)
    ]


def prefix_numbers(packing: Packing) -> list[int]:
    """`Lines.prefixes`, one text behind the other; all 0 without a prefix."""
    found: list[int] = []
    for prefix in packing.prefixes:
        found += (0,) * PREFIX_FIELDS if prefix is None else _describe(prefix)
    return found


def are_known(packing: Packing) -> bool:
    """Whether `Lines.prefixes` can describe all of them."""
    return all(
        keys.dtype == values.dtype and keys.dtype in DTYPES and keys.stride() == values.stride() and keys.stride(3) == 1
        for keys, values in filter(None, packing.prefixes)
    )


def _describe(prefix: KeysValues) -> Sequence[int]:
    keys, values = prefix
    return keys.data_ptr(), values.data_ptr(), *keys.stride()[:3], DTYPES.index(keys.dtype)
