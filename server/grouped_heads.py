"""The classification heads of a batch on a GPU: one launch a layer for all adapters whose heads are alike.

A head's addresses are found when it is first used. A pass uploads them beside the texts they are for, once. Activations
and means and deviations of norms are torch's, for all texts of the batch; a norm's own weight and bias are taken in by
the next layer (`server.triton_kernels.apply_head_layer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from server.grouped import DTYPES, FEW_ROWS, upload
from server.heads import Head, Share

FIELDS = 8
"""Whole numbers of a tile: see `server.triton_kernels.apply_head_layer`."""


class HeadKernels(Protocol):
    """`server.triton_kernels`, which is imported where there is Triton only."""

    def apply_head_layer(
        self,
        x: Tensor,
        out: Tensor,
        tiles: Tensor,
        rows: int,
        most_outputs: int,
        dtype: torch.dtype,
        norm_dtype: torch.dtype,
    ) -> None: ...


class Step(NamedTuple):
    """What heads have in common at a layer that share its launch.

    dtype: of its tensors. norm_dtype: of those of the norm in front of it. epsilon: of the norm behind it; None: none.
    """

    dtype: torch.dtype
    norm_dtype: torch.dtype
    activation: Callable[[Tensor], Tensor] | None
    epsilon: float | None


class HeadTable(NamedTuple):
    """Where one head's tensors lie. addresses: by layer, as in a tile."""

    steps: tuple[Step, ...]
    num_labels: int
    addresses: tuple[tuple[int, int, int, int], ...]


class Placed(NamedTuple):
    """The texts of one head. place: where the logits of the first one go."""

    start: int
    stop: int
    place: int
    table: HeadTable


class GroupedHeads:
    """Runs heads as `server.heads.logits` does; what has no table is left to that. Owned by the engine thread."""

    def __init__(self, kernels: HeadKernels) -> None:
        self._kernels = kernels
        self._tables: WeakKeyDictionary[Head, HeadTable | None] = WeakKeyDictionary()

    def logits(self, pooled: Tensor, shares: Sequence[Share]) -> Tensor:
        """The logits of all texts, one behind the other. pooled [texts, hidden], float32, row by row."""
        groups: dict[tuple[Step, ...], list[Placed]] = {}
        others: list[tuple[int, Share]] = []
        size = 0
        for share in shares:
            table = self._table(share.head)
            if table is None:
                others.append((size, share))
            else:
                groups.setdefault(table.steps, []).append(Placed(share.start, share.stop, size, table))
            size += (share.stop - share.start) * share.head.num_labels
        out = pooled.new_empty(size)
        if groups:
            self._run(groups, pooled, out)
        for place, (start, stop, head) in others:
            found = head.logits(pooled[start:stop]).flatten()
            out[place : place + len(found)] = found
        return out

    def _run(self, groups: dict[tuple[Step, ...], list[Placed]], pooled: Tensor, out: Tensor) -> None:
        width = pooled.shape[1]
        drafts = [
            [number for placed in members for number in _tiles(placed, layer, width)]
            for steps, members in groups.items()
            for layer in range(len(steps))
        ]
        numbers = upload([number for draft in drafts for number in draft], pooled.device)
        tiles = iter(torch.split(numbers, [len(draft) for draft in drafts]))
        for steps, members in groups.items():
            x = pooled
            for step in steps[:-1]:
                x = self._launch(step, x, torch.empty_like(pooled), next(tiles), width)  # [texts, hidden]
                x = x if step.activation is None else step.activation(x)
                x = x if step.epsilon is None else layer_norm(x, (width,), eps=step.epsilon)
            self._launch(steps[-1], x, out, next(tiles), max(placed.table.num_labels for placed in members))

    def _launch(self, step: Step, x: Tensor, out: Tensor, tiles: Tensor, most_outputs: int) -> Tensor:
        """Rows of out that belong to other heads stay as they are."""
        shaped = tiles.view(-1, FIELDS)
        self._kernels.apply_head_layer(x, out, shaped, FEW_ROWS, most_outputs, step.dtype, step.norm_dtype)
        return out

    def _table(self, head: Head) -> HeadTable | None:
        if head not in self._tables:
            self._tables[head] = table_of(head)
        return self._tables[head]


def table_of(head: Head) -> HeadTable | None:
    """A head's table; None where kernels cannot do all that it does. It holds as long as the head does."""
    last = head.layers[-1]
    if last.activation is not None or last.norm is not None:
        return None
    steps, addresses, norm = [], [], None
    for layer in head.layers:
        own, before = head.pair(layer.name), head.pair(norm.name) if norm is not None else (None, None)
        norm = layer.norm
        dtypes, norm_dtypes = ({tensor.dtype for tensor in some if tensor is not None} for some in (own, before))
        if len(dtypes) > 1 or len(norm_dtypes) > 1 or not dtypes | norm_dtypes <= set(DTYPES):
            return None
        if not all(tensor.is_contiguous() for tensor in (*own, *before) if tensor is not None):
            return None
        (dtype,) = dtypes
        (norm_dtype,) = norm_dtypes or dtypes
        steps.append(Step(dtype, norm_dtype, layer.activation, norm.epsilon if norm is not None else None))
        weight, bias, scale, shift = (0 if tensor is None else tensor.data_ptr() for tensor in (*own, *before))
        addresses.append((weight, bias, scale, shift))
    return HeadTable(tuple(steps), head.num_labels, tuple(addresses))


def _tiles(placed: Placed, layer: int, width: int) -> Iterator[int]:
    """The numbers of a head's tiles at a layer; all layers but the last keep the rows and the width."""
    start, stop, place, table = placed
    is_last = layer == len(table.steps) - 1
    num_outputs, first = (table.num_labels, place) if is_last else (width, start * width)
    for begin in range(start, stop, FEW_ROWS):
        end = min(begin + FEW_ROWS, stop)
        yield from (begin, end, first + (begin - start) * num_outputs, num_outputs, *table.addresses[layer])
