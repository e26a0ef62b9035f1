"""A head on the frozen base as a PEFT method: import this module and PEFT trains, saves and loads such folders.

A file holds the head alone. Loading such a folder without this import fails in PEFT with `KeyError: 'HEAD'`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from training.peft_types import extend_peft_type

HEAD = extend_peft_type("HEAD")


@dataclass
class HeadConfig(PeftConfig):
    """Configuration; there is nothing to set."""

    target_modules: str = field(default=DUMMY_TARGET_MODULES)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = HEAD
        self.target_modules = DUMMY_TARGET_MODULES  # what PEFT reads as: no module, and that is no mistake


class HeadModel(BaseTuner):
    """Changes no layer. PEFT adds the trainable copy of the head, as it does for every method."""

    prefix = "no_adapter_"
    """In no parameter's name: PEFT trains what has it in its name."""
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # there are no targets

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> Any:
        raise NotImplementedError("PEFT asked to replace a layer for a method without targets; this is a bug")


if HEAD not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(
        name="head", config_cls=HeadConfig, model_cls=HeadModel, prefix=HeadModel.prefix, is_mixed_compatible=False
    )
