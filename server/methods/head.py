"""No adapter weights at all, only a head of its own: a linear probe on the frozen base (Alain and Bengio 2016).

PEFT has no such method: `training.peft_head` registers ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from server.methods.base import Method, Site

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family


class Head(Method[None]):
    """y = W x + b at every site: the base as it is. What differs between adapters is the head on top."""

    name = "head"
    peft_type = "HEAD"
    peft_module = "training.peft_head"
    roles = ()
    head_learning_rate = 3e-2
    learning_rate = head_learning_rate  # without effect: there are no other weights
    known_fields = frozenset()

    def shape(
        self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        raise NotImplementedError("the method has no tensors at any site; this is a bug")

    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> None:
        raise NotImplementedError("the method has no rows at any site; this is a bug")

    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
        from peft.utils.peft_types import PeftType

        config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)]
        config: PeftConfig = config_class(task_type="SEQ_CLS")
        return config


METHOD = Head()
