"""How far a GPU's kernels are from torch in float64, on drawn batches: at the start, in tests and on a new card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from server.attention import Attend, Heads, Packing, attend
from server.grouped import DeviceKernels, batch_of, table_of
from server.grouped_heads import GroupedHeads, HeadKernels
from server.heads import Head, Layer, Share, head_shapes, logits
from server.methods.base import KeysValues, Segment
from server.products import LowRank, Operation, TorchProducts

NUM_SITES, SITE = 3, 1
GAP = 2
"""Rows between two adapters' that nobody may change."""
NUM_LAYERS, LAYER = 2, 1


class Drawn(NamedTuple):
    """One adapter of a batch: its kind of operation, its rows in the batch, and what its weights are like."""

    kind: Any
    num_rows: int
    rank: int = 8
    activation: str | None = None
    has_bias: bool = False
    dtype: torch.dtype = torch.float32


class DrawnHead(NamedTuple):
    """One head of a batch, its texts in the batch, and the formats of its last layer and of all before that."""

    layers: tuple[Layer, ...]
    num_texts: int
    num_labels: int
    dtype: torch.dtype = torch.float32
    first_dtype: torch.dtype = torch.float32


def operation_error(
    kernels: DeviceKernels, device: torch.device, dtype: torch.dtype, d_in: int, d_out: int, drawn: Sequence[Drawn]
) -> float:
    """The largest error that grouped operations make at one site, as a part of the largest number in the result.

    Raises ValueError where an adapter has no table.
    """
    torch.manual_seed(0)
    operations = [_operation(one, d_in, d_out, device) for one in drawn]
    spans, place = [], 0
    for one, operation in zip(drawn, operations, strict=True):
        table = table_of({SITE: operation}, NUM_SITES, device)
        if table is None:
            raise ValueError(f"{one} is nothing that kernels do")
        spans.append((place + GAP, place + GAP + one.num_rows, table))
        place += GAP + one.num_rows
    batch = batch_of(kernels, spans, device)
    x = torch.randn(place + GAP, d_in, device=device).to(dtype)
    y = torch.randn(place + GAP, 3 * d_out, device=device).to(dtype)  # as where three sites share one product
    expected_x, expected_y = x.double(), y.double()
    _act([span[:2] for span in spans], operations, expected_x, expected_y.chunk(3, 1)[1])
    found = batch.change_input(SITE, x, is_shared=True)
    batch.change_output(SITE, x, y.chunk(3, 1)[1])
    unacted = batch.change_input(SITE + 1, found, is_shared=True)
    batch.change_output(SITE + 1, x, y.chunk(3, 1)[0])
    assert unacted is found, "a site where no adapter acts was changed; this is a bug"
    return max(_part_of(found, expected_x), _part_of(y, expected_y))


def attention_error(
    attending: Attend,
    device: torch.device,
    dtype: torch.dtype,
    heads: Heads,
    is_causal: bool = False,
    window: int | None = None,
    reads_only: bool = False,
    texts: Sequence[tuple[int, int]] = ((5, 0), (70, 0), (1, 3), (33, 20)),
    prefix_dtype: torch.dtype = torch.float32,
) -> float:
    """The same for attention. texts: tokens, and rows of the prefix; without a prefix where there is a window."""
    torch.manual_seed(0)
    lengths = [length for length, _ in texts]
    prefixes = [_prefix(rows if window is None else 0, heads, prefix_dtype, device) for _, rows in texts]
    reads = [0 if reads_only and number % 2 else None for number in range(len(texts))]
    packing = Packing(lengths, prefixes, reads, device)
    widths = [count * heads.head_dim for count in (heads.num_queries, heads.num_keys, heads.num_keys)]
    queries, keys, values = torch.split(torch.randn(sum(lengths), sum(widths), device=device).to(dtype), widths, 1)
    if reads_only:
        queries = queries[packing.read_rows]
    scale = heads.head_dim**-0.5
    q, k, v = (part.double() for part in (queries, keys, values))
    expected = attend(packing, heads, LAYER, scale, q, k, v, reads_only, is_causal, window)
    found = attending(packing, heads, LAYER, scale, queries, keys, values, reads_only, is_causal, window)
    return _part_of(found, expected)


def head_error(kernels: HeadKernels, device: torch.device, hidden_size: int, drawn: Sequence[DrawnHead]) -> float:
    """The same for the heads of a batch; what kernels cannot do is torch's in float32."""
    torch.manual_seed(0)
    shares, place = [], 0
    for one in drawn:
        shares.append(Share(place, place + one.num_texts, _head(one, hidden_size, device)))
        place += one.num_texts
    pooled = torch.randn(place, hidden_size, device=device)
    return _part_of(GroupedHeads(kernels).logits(pooled, shares), logits(pooled.double(), shares))


def _operation(drawn: Drawn, d_in: int, d_out: int, device: torch.device) -> Operation:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(drawn.dtype)

    if drawn.kind.startswith("low_rank"):
        width = d_out if drawn.kind == "low_rank_of_output" else d_in
        down, up = draw(drawn.rank, width) / width**0.5, draw(d_out, drawn.rank) / drawn.rank**0.5
        down_bias, up_bias = (draw(drawn.rank), draw(d_out)) if drawn.has_bias else (None, None)
        return Operation(drawn.kind, LowRank(down.mT, up.mT, 0.7, down_bias, up_bias, drawn.activation))
    return Operation(drawn.kind, draw(d_in if drawn.kind == "scale_input" else d_out))


def _head(drawn: DrawnHead, hidden_size: int, device: torch.device) -> Head:
    tensors = {}
    for name, shape in head_shapes(drawn.layers, hidden_size, drawn.num_labels).items():
        dtype = drawn.dtype if name.startswith(f"{drawn.layers[-1].name}.") else drawn.first_dtype
        tensors[name] = (torch.randn(shape, device=device) / shape[-1] ** (0.5 * (len(shape) - 1))).to(dtype)
    return Head(drawn.layers, tensors)


def _act(spans: Sequence[tuple[int, int]], operations: Sequence[Operation], x: Tensor, y: Tensor) -> None:
    """What every operation is by definition, in float64; what reads x reads what it was before."""
    products, before = TorchProducts(), x.clone()
    for (start, stop), (kind, row) in zip(spans, operations, strict=True):
        if isinstance(row, LowRank):
            products.add_low_rank(
                y if kind == "low_rank_of_output" else before, y, [Segment(start, stop, _doubled(row))]
            )
        elif kind == "shift":
            y[start:stop] += row.double()
        else:
            (x if kind == "scale_input" else y)[start:stop] *= row.double()


def _doubled(row: LowRank) -> LowRank:
    down_bias, up_bias = (None if bias is None else bias.double() for bias in (row.down_bias, row.up_bias))
    return LowRank(row.down.double(), row.up.double(), row.scale, down_bias, up_bias, row.activation)


def _prefix(num_rows: int, heads: Heads, dtype: torch.dtype, device: torch.device) -> KeysValues | None:
    """As an adapter has it: views of what is stored by row."""
    if num_rows == 0:
        return None
    stored = torch.randn(num_rows, NUM_LAYERS, 2, heads.num_keys, heads.head_dim, device=device).to(dtype)
    return KeysValues(*stored.permute(2, 1, 3, 0, 4).unbind())


def _part_of(found: Tensor, expected: Tensor) -> float:
    """Not a number where one of them is none."""
    return float((found.double() - expected).abs().max() / expected.abs().max())
