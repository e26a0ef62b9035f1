"""Classification heads: the layers an architecture says it has, and the tensors that one adapter brings for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm at the end of a head's layer."""

    name: str
    epsilon: float
    has_bias: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer of a head, then its activation, then its norm.

    name: path in the classification model, as in adapter files.
    """

    name: str
    has_bias: bool = True
    activation: Callable[[Tensor], Tensor] | None = None
    norm: Norm | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Head:
    """What makes logits of a pooled text. tensors: by their names in adapter files."""

    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]

    @property
    def num_labels(self) -> int:
        return len(self.tensors[f"{self.layers[-1].name}.weight"])

    def logits(self, pooled: Tensor) -> Tensor:
        """pooled [texts, hidden] to [texts, labels], in the format of pooled."""
        x = pooled
        for layer in self.layers:
            x = linear(x, *self._widened(layer.name, x.dtype))
            if layer.activation is not None:
                x = layer.activation(x)
            if layer.norm is not None:
                x = layer_norm(x, x.shape[-1:], *self._widened(layer.norm.name, x.dtype), layer.norm.epsilon)
        return x  # [texts, labels]

    def pair(self, name: str) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of a layer or norm, as they are stored."""
        return self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")

    def _widened(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Half precision is widened when it is used, so that it stays small."""
        weight, bias = self.pair(name)
        return weight.to(dtype), bias.to(dtype) if bias is not None else None


class Share(NamedTuple):
    """Texts `start` to `stop` of a batch are answered by one head."""

    start: int
    stop: int
    head: Head


def logits(pooled: Tensor, shares: Sequence[Share]) -> Tensor:
    """The logits of all texts, one behind the other: each text has as many as its head has labels.

    pooled [texts, hidden]; shares: in order, every text in one of them.
    """
    return torch.cat([head.logits(pooled[start:stop]).flatten() for start, stop, head in shares])


def head_shapes(layers: Sequence[Layer], hidden_size: int, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a head by its name in adapter files: all layers but the last keep the width."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        width = num_labels if layer is layers[-1] else hidden_size
        shapes[f"{layer.name}.weight"] = (width, hidden_size)
        if layer.has_bias:
            shapes[f"{layer.name}.bias"] = (width,)
        if layer.norm is not None:
            shapes[f"{layer.norm.name}.weight"] = (width,)
            if layer.norm.has_bias:
                shapes[f"{layer.norm.name}.bias"] = (width,)
    return shapes


def head_modules(layers: Sequence[Layer]) -> list[str]:
    """The attributes of the classification model that hold a head: what PEFT calls `modules_to_save`."""
    return list(dict.fromkeys(layer.name.partition(".")[0] for layer in layers))
