"""ModernBERT: an encoder with rotary positions, most of whose layers look no further than a window."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from server.families.base import Family
from server.heads import Layer, Norm
from server.manifest import Pooling

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Modernbert(Family):
    """Pre-norm encoder with fused projections; its own head is that of its pre-training (Warner et al. 2024)."""

    name = "modernbert"
    model_types = ("modernbert",)
    prefix = "model"
    head = "classifier"
    head_has_bias = True
    default_pooling = "mean"
    uses_type_ids = False
    takes_prefix = False
    token_sites = re.compile(r"layers\.\d+\.(attn\.(Wqkv|Wo)|mlp\.(Wi|Wo))")
    lora_targets = ("Wqkv",)  # queries, keys and values in one
    attention_output = r"layers\.\d+\.attn\.Wo"
    feedforward_output = r"layers\.\d+\.mlp\.Wo"
    ia3_targets = r".*(attn\.Wqkv|mlp\.Wo)"
    ia3_feedforward = r".*mlp\.Wo"

    def native_head(self, config: PretrainedConfig) -> tuple[Layer, ...]:
        from transformers.activations import ACT2FN

        activation = ACT2FN[config.classifier_activation]
        norm = Norm("head.norm", config.norm_eps, config.norm_bias)
        return (Layer("head.dense", config.classifier_bias, activation, norm), Layer("classifier"))

    def native_pooling(self, config: PretrainedConfig) -> Pooling:
        pooling: Pooling = config.classifier_pooling
        return pooling


FAMILY = Modernbert()
