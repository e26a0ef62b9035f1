"""What methods compute at a site, for all of their adapters at once: here in torch, in `server.kernels` compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from server.methods.base import Segment

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu_, "gelu": gelu, "silu": silu}


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class LowRank:
    """The row of a method whose adapters add scale * (activation(x @ down + down_bias) @ up + up_bias).

    down [d_in, rank], up [rank, d_out]: transposed views of what is stored. activation: its name in ACTIVATIONS.
    """

    down: Tensor
    up: Tensor
    scale: float
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None
    activation: str | None = None


class Operation(NamedTuple):
    """What a row does at its site, as data: `server.grouped` runs those of many adapters at once.

    scale_input and low_rank read what goes into the site, scale, shift and low_rank_of_output what comes out of it.
    row: a vector, or the `LowRank` that is added to the output.
    """

    kind: Literal["scale_input", "scale", "shift", "low_rank", "low_rank_of_output"]
    row: Tensor | LowRank


class Products(Protocol):
    """Who computes. Methods choose among what is offered here; nothing here knows a method."""

    def add_low_rank(self, x: Tensor, y: Tensor, segments: Sequence[Segment[LowRank]]) -> None:
        """Add every segment's low-rank update of x [rows, d_in] to y [rows, d_out], in place; y may be x."""

    def scale(self, x: Tensor, segments: Sequence[Segment[Tensor]]) -> None:
        """Multiply every segment of x [rows, width] by its vector [width], in place."""


class TorchProducts:
    """Segment after segment, on any device and in any dtype."""

    def add_low_rank(self, x: Tensor, y: Tensor, segments: Sequence[Segment[LowRank]]) -> None:
        for start, stop, row in segments:
            low, part = x[start:stop].to(row.down.dtype), y[start:stop]
            low = low @ row.down if row.down_bias is None else torch.addmm(row.down_bias, low, row.down)
            if row.activation is not None:
                low = ACTIVATIONS[row.activation](low)  # [rows, rank]
            if part.dtype == low.dtype:
                part.addmm_(low, row.up, alpha=row.scale)  # [rows, d_out]
            else:
                part.add_(low @ row.up, alpha=row.scale)
            if row.up_bias is not None:
                part.add_(row.up_bias, alpha=row.scale)

    def scale(self, x: Tensor, segments: Sequence[Segment[Tensor]]) -> None:
        for start, stop, vector in segments:
            x[start:stop].mul_(vector)
