"""Linear layers whose weights never change, kept in the order that the processor multiplies fastest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class FrozenLinear:
    """One or several linear layers that read the same input, as one product.

    On the CPU the weights are reordered once for oneDNN (docs/log.md says what that brings). The product is computed
    in `dtype`, whatever comes in; what comes out is `out_dtype`.
    """

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype, out_dtype: torch.dtype) -> None:
        bias = _join_biases(layers)
        self._dtype, self._out_dtype = dtype, out_dtype
        self._weight = torch.cat([layer.weight.detach() for layer in layers]).to(dtype)
        self._bias = bias.to(dtype) if bias is not None else None
        self.is_reordered = _can_reorder(self._weight)
        if self.is_reordered:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, None)

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, d_in] to a new tensor [rows, sum of d_out]."""
        if self.is_reordered:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self._dtype), self._weight, self._bias, "none", [], "")
        else:
            y = linear(x.to(self._dtype), self._weight, self._bias)
        return y.to(self._out_dtype)


def round_up(num_rows: int) -> int:
    """The next number of rows of which oneDNN is given products: eight of them to a doubling.

    It prepares itself for every number of rows that it sees, which takes longer than a small batch, and keeps what it
    has prepared, two megabytes for each (docs/log.md).
    """
    step = max(4, 1 << max(0, (num_rows - 1).bit_length() - 4))
    return -(-num_rows // step) * step


def release(layer: nn.Linear) -> None:
    """Give back the memory of a layer's own weights, once products are made of them."""
    layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


def _join_biases(layers: Sequence[nn.Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    biases = [layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features) for layer in layers]
    return torch.cat([bias.detach() for bias in biases])


def _can_reorder(weight: Tensor) -> bool:
    """Whether oneDNN takes weights of this kind here; the operators are those that torch's own compiler emits."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
