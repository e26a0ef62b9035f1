"""(IA)^3: learned vectors that scale keys, values and feed-forward activations (Liu et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from server.methods.base import Method, Segment, Site, is_named
from server.products import Operation

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family
    from server.products import Products

SCALE = "ia3_l"


class Ia3Row(NamedTuple):
    """scale [d_in] of a feed-forward layer's input, or [d_out] of any other layer's output."""

    scale: Tensor
    on_input: bool


class Ia3(Method[Ia3Row]):
    """Keys, values: y *= l. Feed-forward: the layer's input x *= l. PEFT stores [d_out, 1] and [1, d_in]."""

    name = "ia3"
    peft_type = "IA3"
    roles = (SCALE,)
    learning_rate = 3e-2
    weight_decay = 0.0  # the vectors begin at 1: decay would pull them away from changing nothing
    known_fields = frozenset(("feedforward_modules", "init_ia3_weights"))

    def shape(
        self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        if stored is None:
            on_input = is_named(config, "feedforward_modules", site.name)
        else:
            on_input = stored[:1] == (1,) and site.out_features != 1
        return (1, site.in_features) if on_input else (site.out_features, 1)

    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> Ia3Row:
        scale = tensors[SCALE]
        return Ia3Row(scale.view(-1), on_input=scale.shape[0] == 1 and site.out_features != 1)

    def changes_input(self, row: Ia3Row) -> bool:
        return row.on_input

    def change_input(self, x: Tensor, segments: Sequence[Segment[Ia3Row]], products: Products) -> None:
        products.scale(x, [Segment(start, stop, row.scale) for start, stop, row in segments])

    def apply(self, x: Tensor, y: Tensor, segments: Sequence[Segment[Ia3Row]], products: Products) -> None:
        products.scale(y, [Segment(start, stop, row.scale) for start, stop, row in segments if not row.on_input])

    def operation(self, row: Ia3Row) -> Operation:
        return Operation("scale_input" if row.on_input else "scale", row.scale)

    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        from peft import IA3Config

        return IA3Config(
            task_type="SEQ_CLS", target_modules=family.ia3_targets, feedforward_modules=family.ia3_feedforward
        )


METHOD = Ia3()
