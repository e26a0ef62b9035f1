"""BitFit: learned biases on the linear layers (Ben Zaken et al. 2022), as PEFT's BEFT stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from server.methods.base import Method, Segment, Site
from server.products import Operation

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family
    from server.products import Products

BIAS = "beft_bias"


class BitfitRow(NamedTuple):
    """bias [d_out], added to what the layer gives."""

    bias: Tensor


class Bitfit(Method[BitfitRow]):
    """y += b at every linear layer, biased or not; LayerNorm's own biases stay as they are. PEFT stores [1, d_out]."""

    name = "bitfit"
    peft_type = "BEFT"
    roles = (BIAS,)
    learning_rate = 5e-3
    known_fields = frozenset(("init_weights",))

    def shape(
        self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        return (1, site.out_features)

    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> BitfitRow:
        return BitfitRow(tensors[BIAS].view(-1))

    def apply(self, x: Tensor, y: Tensor, segments: Sequence[Segment[BitfitRow]], products: Products) -> None:
        for start, stop, (bias,) in segments:
            y[start:stop].add_(bias)

    def operation(self, row: BitfitRow) -> Operation:
        return Operation("shift", row.bias)

    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        from peft import BeftConfig

        return BeftConfig(task_type="SEQ_CLS", target_modules=rf"{family.prefix}\.{family.token_sites.pattern}")


METHOD = Bitfit()
