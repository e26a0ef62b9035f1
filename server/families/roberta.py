"""RoBERTa-type encoders: RoBERTa itself, XLM-RoBERTa and CamemBERT, whose layers have the same names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

import torch

from server.families.base import Family
from server.families.bert import Bert
from server.heads import Layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Roberta(Family):
    """BERT's layers without types of tokens; its own head reads <s> through two layers (Liu et al. 2019).

    Positions are counted from the padding token's id on, over the tokens that are not padding, which all have that id.
    """

    name = "roberta"
    model_types = ("roberta", "xlm-roberta", "camembert")
    prefix = "roberta"
    head = "classifier"
    head_has_bias = True
    default_pooling = "mean"
    uses_type_ids = False
    model_options: ClassVar = {"add_pooling_layer": False}  # its own head does without
    token_sites = Bert.token_sites
    lora_targets = Bert.lora_targets
    attention_output = Bert.attention_output
    feedforward_output = Bert.feedforward_output
    ia3_targets = Bert.ia3_targets
    ia3_feedforward = Bert.ia3_feedforward
    post_norm_layer = Bert.post_norm_layer

    def native_head(self, config: PretrainedConfig) -> tuple[Layer, ...]:
        return (Layer("classifier.dense", activation=torch.tanh), Layer("classifier.out_proj"))

    def length_limit(self, config: PretrainedConfig) -> int:
        return int(config.max_position_embeddings) - int(config.pad_token_id) - 1

    def positions(self, token_ids: Sequence[int], pad_id: int | None, offset: int = 0) -> list[int]:
        assert pad_id is not None, "a RoBERTa without a padding token was let through; this is a bug"
        counts = accumulate(token != pad_id for token in token_ids)
        return [
            pad_id + (offset + count if token != pad_id else 0) for token, count in zip(token_ids, counts, strict=True)
        ]


FAMILY = Roberta()
