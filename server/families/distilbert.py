"""DistilBERT: BERT's encoder with half the layers, other names and no types of tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from server.families.base import Family, PostNormLayer
from server.heads import Layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Distilbert(Family):
    """Post-norm encoder; its own head reads [CLS] through a dense layer and a ReLU (Sanh et al. 2019)."""

    name = "distilbert"
    model_types = ("distilbert",)
    prefix = "distilbert"
    head = "classifier"
    head_has_bias = True
    default_pooling = "mean"
    uses_type_ids = False
    takes_prefix = False
    token_sites = re.compile(r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])")
    lora_targets = ("q_lin", "v_lin")
    attention_output = r"transformer\.layer\.\d+\.attention\.out_lin"
    feedforward_output = r"transformer\.layer\.\d+\.ffn\.lin2"
    ia3_targets = r".*\.(k_lin|v_lin|lin2)"
    ia3_feedforward = r".*\.lin2"
    post_norm_layer = PostNormLayer(
        query="transformer.layer.{}.attention.q_lin",
        key="transformer.layer.{}.attention.k_lin",
        value="transformer.layer.{}.attention.v_lin",
        attention_output="transformer.layer.{}.attention.out_lin",
        attention_norm="transformer.layer.{}.sa_layer_norm",
        up="transformer.layer.{}.ffn.lin1",
        down="transformer.layer.{}.ffn.lin2",
        output_norm="transformer.layer.{}.output_layer_norm",
    )

    def native_head(self, config: PretrainedConfig) -> tuple[Layer, ...]:
        return (Layer("pre_classifier", activation=torch.relu), Layer("classifier"))


FAMILY = Distilbert()
