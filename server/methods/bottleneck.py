"""Bottleneck adapters: a small non-linear layer behind a sub-layer (Houlsby et al. 2019; Pfeiffer et al. 2021).

PEFT has no such method: `training.peft_bottleneck` registers ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from server.errors import AdapterDamaged, MethodUnsupported
from server.methods.base import MAX_RANK, Method, Segment, Site, add_product

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family

DOWN_WEIGHT, DOWN_BIAS = "bottleneck_down.weight", "bottleneck_down.bias"
UP_WEIGHT, UP_BIAS = "bottleneck_up.weight", "bottleneck_up.bias"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu_, "gelu": gelu, "silu": silu}
MAX_SCALING = 1e6


class BottleneckRow(NamedTuple):
    """down [d, size], up [size, d]: transposed views of what is stored, with their biases."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: Callable[[Tensor], Tensor]
    scale: float


class Bottleneck(Method[BottleneckRow]):
    """y += s * up(act(down(y))), y being what a sub-layer's last linear layer gives, before residual and norm.

    Houlsby: behind attention and feed-forward. Pfeiffer: behind the feed-forward only (`after_attention` 0).
    """

    name = "bottleneck"
    peft_type = "BOTTLENECK"
    peft_module = "training.peft_bottleneck"
    roles = (DOWN_WEIGHT, DOWN_BIAS, UP_WEIGHT, UP_BIAS)
    learning_rate = 2e-3
    options: ClassVar = {"size": (32, 1, MAX_RANK), "after_attention": (1, 0, 1), "dropout": (0.0, 0.0, 0.9)}
    known_fields = frozenset(("bottleneck_size", "non_linearity", "scaling", "dropout", "init_weights"))

    def check_config(self, config: Mapping[str, object]) -> None:
        super().check_config(config)
        if config.get("non_linearity") not in ACTIVATIONS:
            raise MethodUnsupported(
                f"`non_linearity` is {config.get('non_linearity')!r}; supported: {', '.join(ACTIVATIONS)}"
            )

    def shape(self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        size, width = config.get("bottleneck_size"), site.out_features
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_RANK:
            raise AdapterDamaged(f"`bottleneck_size` is {size!r}, it must be a whole number from 1 to {MAX_RANK}")
        return {DOWN_WEIGHT: (size, width), DOWN_BIAS: (size,), UP_WEIGHT: (width, size), UP_BIAS: (width,)}[role]

    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> BottleneckRow:
        scaling = config.get("scaling", 1.0)
        if not isinstance(scaling, int | float) or isinstance(scaling, bool) or not abs(scaling) <= MAX_SCALING:
            raise AdapterDamaged(f"`scaling` is {scaling!r:.40}, it must be a number up to {MAX_SCALING}")
        return BottleneckRow(
            tensors[DOWN_WEIGHT].mT,
            tensors[DOWN_BIAS],
            tensors[UP_WEIGHT].mT,
            tensors[UP_BIAS],
            ACTIVATIONS[str(config["non_linearity"])],
            float(scaling),
        )

    def apply(self, x: Tensor, y: Tensor, segments: Sequence[Segment[BottleneckRow]]) -> None:
        for start, stop, row in segments:
            part = y[start:stop]
            low = row.activation(torch.addmm(row.down_bias, part.to(row.down.dtype), row.down))  # [tokens, size]
            add_product(part, low, row.up, row.scale)  # [tokens, d]
            part.add_(row.up_bias, alpha=row.scale)

    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
        from peft.utils.peft_types import PeftType

        outputs = [family.feedforward_output] + [family.attention_output] * int(options["after_attention"])
        config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)]
        config: PeftConfig = config_class(
            task_type="SEQ_CLS",
            bottleneck_size=int(options["size"]),
            dropout=options["dropout"],
            target_modules=rf"{family.prefix}\.({'|'.join(outputs)})",
        )
        return config


METHOD = Bottleneck()
