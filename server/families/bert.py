"""BERT-type encoders: BERT itself, MiniLM and the sentence-transformers built on them."""

from __future__ import annotations

import re

from torch import Tensor, nn

from server.families.base import Family, PostNormLayer


class Bert(Family):
    """Post-norm encoder; its own head reads [CLS] through a dense layer and tanh (Devlin et al. 2019)."""

    name = "bert"
    model_types = ("bert",)
    prefix = "bert"
    head = "classifier"
    head_has_bias = True
    default_pooling = "mean"
    uses_type_ids = True
    token_sites = re.compile(
        r"encoder\.layer\.\d+\."
        r"(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)"
    )
    pool = "pooler"
    lora_targets = ("query", "value")
    attention_output = r"encoder\.layer\.\d+\.attention\.output\.dense"
    feedforward_output = r"encoder\.layer\.\d+\.output\.dense"
    # `output.dense` alone would match attention.output.dense too, which only repeats what the values do
    ia3_targets = r".*(attention\.self\.(key|value)|layer\.\d+\.output\.dense)"
    ia3_feedforward = r".*layer\.\d+\.output\.dense"
    post_norm_layer = PostNormLayer(
        query="encoder.layer.{}.attention.self.query",
        key="encoder.layer.{}.attention.self.key",
        value="encoder.layer.{}.attention.self.value",
        attention_output="encoder.layer.{}.attention.output.dense",
        attention_norm="encoder.layer.{}.attention.output.LayerNorm",
        up="encoder.layer.{}.intermediate.dense",
        down="encoder.layer.{}.output.dense",
        output_norm="encoder.layer.{}.output.LayerNorm",
    )

    def native_pool(self, hidden: Tensor, pool: nn.Module | None) -> Tensor:
        assert pool is not None, "a BERT without pooler weights was let through; this is a bug"
        pooled: Tensor = pool.activation(pool.dense(hidden))  # type: ignore[operator]
        return pooled


FAMILY = Bert()
