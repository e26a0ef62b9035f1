"""What an adapter will weigh, before anything is trained."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from server.base_model import sites_of
from server.families import family_of
from server.heads import head_shapes
from server.manifest import Pooling
from server.methods import Method

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PARAMETER_BYTES = 4
"""Adapters and heads are trained, and written, in float32."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """num_adapter_parameters: trained, without the head."""

    num_adapter_parameters: int
    num_head_parameters: int

    @property
    def weight_bytes(self) -> int:
        """Of all tensors of the adapter's file; its header adds 40 to 140 bytes a tensor."""
        return PARAMETER_BYTES * (self.num_adapter_parameters + self.num_head_parameters)


def footprint(
    method: Method[Any], base: PretrainedConfig, options: Mapping[str, float], pooling: Pooling, num_labels: int
) -> Footprint:
    """What `adaptermux-train run` would train, from the base model's configuration alone.

    options: all of the method's, as in `Plan.options`.
    """
    family = family_of(base.model_type)
    if method.peft_module is not None:
        importlib.import_module(method.peft_module)
    config = method.peft_config(family, options).to_dict()
    # peft holds lists of names as sets until it writes them
    record = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    layers = family.native_head(base) if pooling == "native" else family.linear_head()
    if pooling != "native" and num_labels == 1:
        layers = (replace(layers[0], has_bias=True),)
    return Footprint(
        num_adapter_parameters=method.num_parameters(record, sites_of(base, family)),
        num_head_parameters=sum(map(prod, head_shapes(layers, base.hidden_size, num_labels).values())),
    )
