"""Bottleneck adapters: a small non-linear layer behind a sub-layer (Houlsby et al. 2019; Pfeiffer et al. 2021).

PEFT has no such method: `training.peft_bottleneck` registers ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from server.errors import AdapterDamaged, MethodUnsupported
from server.methods.base import MAX_RANK, Method, Segment, Site
from server.products import ACTIVATIONS, LowRank, Operation

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family
    from server.products import Products

DOWN_WEIGHT, DOWN_BIAS = "bottleneck_down.weight", "bottleneck_down.bias"
UP_WEIGHT, UP_BIAS = "bottleneck_up.weight", "bottleneck_up.bias"
MAX_SCALING = 1e6


class Bottleneck(Method[LowRank]):
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

    def shape(
        self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        size, width = config.get("bottleneck_size"), site.out_features
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_RANK:
            raise AdapterDamaged(f"`bottleneck_size` is {size!r}, it must be a whole number from 1 to {MAX_RANK}")
        return {DOWN_WEIGHT: (size, width), DOWN_BIAS: (size,), UP_WEIGHT: (width, size), UP_BIAS: (width,)}[role]

    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> LowRank:
        scaling = config.get("scaling", 1.0)
        if not isinstance(scaling, int | float) or isinstance(scaling, bool) or not abs(scaling) <= MAX_SCALING:
            raise AdapterDamaged(f"`scaling` is {scaling!r:.40}, it must be a number up to {MAX_SCALING}")
        down, down_bias, up, up_bias = (tensors[role] for role in self.roles)
        return LowRank(down.mT, up.mT, float(scaling), down_bias, up_bias, str(config["non_linearity"]))

    def apply(self, x: Tensor, y: Tensor, segments: Sequence[Segment[LowRank]], products: Products) -> None:
        products.add_low_rank(y, y, segments)

    def operation(self, row: LowRank) -> Operation:
        return Operation("low_rank_of_output", row)

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
