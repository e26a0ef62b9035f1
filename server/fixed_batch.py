"""A batch whose numbers lie at fixed addresses: a pass that was recorded over them runs again over those of another."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from server.attention import Packing
from server.grouped import FEW_ROWS, FIELDS, Batch, DeviceKernels, Draft, Group, Part, Rows, draft
from server.varlen_attention import PREFIX_FIELDS, key_lengths, prefix_numbers

TEXT_TOKENS, FEWEST_TEXTS = 16, 8
"""There is room for as many texts as have so many tokens each, and for a few in any case."""


class Shape(NamedTuple):
    """What a recorded pass has room for. longest: tokens of one text, and rows of a prefix."""

    num_tokens: int
    longest: int

    @property
    def num_texts(self) -> int:
        return max(FEWEST_TEXTS, self.num_tokens // TEXT_TOKENS)

    @property
    def num_prefix_rows(self) -> int:
        return self.num_tokens

    @property
    def num_fillers(self) -> int:
        """Texts that no request has asked for, to whom tokens belong that are left over."""
        return -(-self.num_tokens // self.longest)

    def holds(self, packing: Packing) -> bool:
        """Whether a batch has room."""
        keys = key_lengths(packing)
        return (
            packing.starts[-1] <= self.num_tokens
            and len(keys) <= self.num_texts
            and max(packing.lengths) <= self.longest
            and max(keys) <= 2 * self.longest
            and sum(keys) - packing.starts[-1] <= self.num_prefix_rows
        )


class Sites(NamedTuple):
    """Where the adapters of a group may act, by number."""

    inputs: frozenset[int]
    outputs: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class FixedLines:
    """`server.varlen_attention.Lines` of a fixed batch, all of whose tokens are read."""

    num_tokens: int
    longest_text: int
    longest_key: int
    token_starts: Tensor
    read_starts: Tensor
    key_starts: Tensor
    has_prefixes: bool
    has_known_prefixes: bool
    sources: Tensor
    prefixes: Tensor


class FixedBatch:
    """Room for a batch of one shape. Owned by the engine thread.

    inputs [1, tokens] by their name in the model, packing, batch: what a pass is given, always the same. Which adapters
    act, and where, is in the numbers that `write` puts there; of which groups and at which sites they may be, is not:
    these are the slots.
    """

    def __init__(
        self,
        shape: Shape,
        names: Sequence[str],
        slots: Mapping[Group, Sites],
        kernels: DeviceKernels,
        num_sites: int,
        device: torch.device,
    ) -> None:
        num_texts = shape.num_texts + shape.num_fillers
        num_tiles = shape.num_tokens // FEW_ROWS + shape.num_texts
        self._shape, self._slots = shape, dict(slots)
        self._rooms: dict[str | Group, int] = {
            **dict.fromkeys(names, shape.num_tokens),
            "token_starts": num_texts + 1,
            "key_starts": num_texts + 1,
            "prefixes": num_texts * PREFIX_FIELDS,
            "addresses": shape.num_texts + 1,
            **dict.fromkeys(slots, 3 * num_tiles),
        }
        self._numbers = torch.zeros(sum(self._rooms.values()), dtype=torch.int64, device=device)
        self._parts = dict(zip(self._rooms, torch.split(self._numbers, list(self._rooms.values())), strict=True))
        self._nothing = torch.zeros(num_sites * FIELDS, dtype=torch.int64, device=device)  # table of no adapter
        self._key_rows = torch.arange(shape.num_tokens + shape.num_prefix_rows, device=device)
        self.inputs = {name: self._parts[name].view(1, -1) for name in names}
        self.packing = Packing([shape.num_tokens], [None], [None], device)
        tiles = {group: self._parts[group].view(-1, 3) for group in slots}
        self.batch = Batch(
            kernels,
            self._parts["addresses"],
            [Part(group, FEW_ROWS, tiles[group], *sites) for group, sites in slots.items()],
        )

    def takes(self, drafts: Sequence[Draft]) -> bool:
        """Whether there are slots for all that adapters do."""
        return all(
            one.group in self._slots
            and one.inputs <= self._slots[one.group].inputs
            and one.outputs <= self._slots[one.group].outputs
            for one in drafts
        )

    def write(self, inputs: Mapping[str, Sequence[int]], packing: Packing, spans: Sequence[Rows]) -> None:
        """Put another batch there, in one copy that nobody waits for. It has room, and its drafts are taken."""
        keys = [0]
        for length in key_lengths(packing):
            keys.append(keys[-1] + length)
        starts = list(packing.starts)
        while starts[-1] < self._shape.num_tokens:  # to the end, so that every row of the attention's is somebody's
            starts.append(min(starts[-1] + self._shape.longest, self._shape.num_tokens))
            keys.append(keys[-1] + starts[-1] - starts[-2])
        given: dict[str | Group, Sequence[int]] = {
            "token_starts": starts,
            "key_starts": keys,
            "prefixes": prefix_numbers(packing),
            "addresses": [table.numbers.data_ptr() for _, _, table in spans],
            **{one.group: one.tiles for one in draft(spans, FEW_ROWS)},
        }
        for name, values in inputs.items():
            given[name] = values
        fillers: dict[str | Group, Sequence[int]] = {
            "token_starts": starts[-1:],
            "key_starts": keys[-1:],
            "addresses": (self._nothing.data_ptr(),),
            **dict.fromkeys(self._slots, (len(spans), 0, 0)),
        }
        numbers = array("q")
        for part, room in self._rooms.items():
            some, filler = given.get(part, ()), fillers.get(part, (0,))
            numbers.extend(some)
            numbers.extend(array("q", filler) * ((room - len(some)) // len(filler)))
        made = torch.frombuffer(numbers, dtype=torch.int64)
        self._numbers.copy_(made.pin_memory() if self._numbers.is_cuda else made, non_blocking=True)

    def lines(self, has_prefixes: bool) -> FixedLines:
        """Where keys lie, computed on the device: a part of the pass."""
        tokens, keys = self._parts["token_starts"], self._parts["key_starts"]
        # rows behind the last text's are given to it; they stand for no key
        text = (torch.searchsorted(keys, self._key_rows, right=True) - 1).clamp_(max=len(keys) - 2)
        row = self._key_rows - keys[text]
        token = row - (keys.diff() - tokens.diff())[text]  # of the text; in front of its first: the prefix
        sources = torch.stack(
            (
                text.masked_fill(token >= 0, -1),
                torch.where(token < 0, row, (tokens[text] + token).clamp_(max=self._shape.num_tokens - 1)),
            ),
            1,
        )
        starts = tokens.int()
        return FixedLines(
            num_tokens=self._shape.num_tokens,
            longest_text=self._shape.longest,
            longest_key=2 * self._shape.longest if has_prefixes else self._shape.longest,
            token_starts=starts,
            read_starts=starts,
            key_starts=keys.int(),
            has_prefixes=has_prefixes,
            has_known_prefixes=True,
            sources=sources,
            prefixes=self._parts["prefixes"].view(-1, PREFIX_FIELDS),
        )
