"""Classification heads: the layers an architecture says it has, and the tensors that one adapter brings for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What makes logits of a pooled text. tensors: by their names in adapter files."""

    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]

    def logits(self, pooled: Tensor) -> Tensor:
        """pooled [texts, hidden] to [texts, labels]."""
        x = pooled
        for layer in self.layers:
            x = linear(x, *self._pair(layer.name))
            if layer.activation is not None:
                x = layer.activation(x)
            if layer.norm is not None:
                x = layer_norm(x, x.shape[-1:], *self._pair(layer.norm.name), layer.norm.epsilon)
        return x  # [texts, labels]

    def _pair(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A layer's weight and bias; half precision is widened when it is used, so that it stays small."""
        bias = self.tensors.get(f"{name}.bias")
        return self.tensors[f"{name}.weight"].float(), bias.float() if bias is not None else None


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
