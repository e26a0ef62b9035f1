"""Bottleneck adapters as a PEFT method: import this module and PEFT trains, saves and loads them.

Keys in a file: `<layer>.bottleneck_down.{weight,bias}` and `<layer>.bottleneck_up.{weight,bias}`. Loading such
a folder without this import fails in PEFT with `KeyError: 'BOTTLENECK'`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn

from server.products import ACTIVATIONS
from training.peft_types import extend_peft_type

INIT_STD = 0.01
"""Near identity: Houlsby et al. 2019, section 3.6, find training robust up to this."""


BOTTLENECK = extend_peft_type("BOTTLENECK")


@dataclass
class BottleneckConfig(PeftConfig):
    """Configuration; non_linearity is one of relu, gelu, silu."""

    bottleneck_size: int = field(default=32)
    non_linearity: str = field(default="relu")
    scaling: float = field(default=1.0)
    dropout: float = field(default=0.0)
    target_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    init_weights: bool = field(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = BOTTLENECK
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # what PEFT's own methods do


class BottleneckLinear(nn.Module, BaseTunerLayer):
    """y = W x + b, then y + s * up(act(down(y)))."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_config",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict({})
        self.bottleneck_up = nn.ModuleDict({})
        self.bottleneck_dropout = nn.ModuleDict({})
        self.bottleneck_config: dict[str, BottleneckConfig] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        linear = self.get_base_layer()
        assert isinstance(linear, nn.Linear), "checked where the layer is put in place"
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, **_: Any) -> None:
        width = int(self.out_features)
        down, up = nn.Linear(width, config.bottleneck_size), nn.Linear(config.bottleneck_size, width)
        if config.init_weights:
            nn.init.trunc_normal_(down.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            nn.init.zeros_(down.bias)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.bottleneck_config[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, *_: Any, **__: Any) -> None:
        raise ValueError("a bottleneck adapter is not linear and cannot be merged")

    def unmerge(self) -> None:
        """Nothing was merged."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                result = result + self._update(result, name)
        return result

    def _update(self, y: Tensor, name: str) -> Tensor:
        down, up, config = self.bottleneck_down[name], self.bottleneck_up[name], self.bottleneck_config[name]
        assert isinstance(down, nn.Linear)
        low = ACTIVATIONS[config.non_linearity](down(self.bottleneck_dropout[name](y.to(down.weight.dtype))))
        update: Tensor = up(low) * config.scaling
        return update.to(y.dtype)


class BottleneckModel(BaseTuner):
    """Puts `BottleneckLinear` in the place of the targeted linear layers."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # targets are always named

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, BottleneckConfig)
        if isinstance(target, BottleneckLinear):
            target.update_layer(adapter_name, peft_config)
            return
        linear = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"`{current_key}` is {type(linear).__name__}; bottleneck adapters go behind linear layers")
        layer = BottleneckLinear(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


if BOTTLENECK not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(
        name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel, is_mixed_compatible=False
    )
