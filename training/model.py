"""The model that an adapter is trained on: a frozen backbone with a head, laid out as PEFT expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from server.base_model import family_of_folder, locate
from server.families import Family
from server.manifest import Pooling, ProblemType

PROBLEM_TYPES: Mapping[ProblemType, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""What transformers calls them; its stock classes choose their loss by it, and so does ours."""


class PooledClassifier(PreTrainedModel):
    """Backbone, pooling over its last hidden states, linear head.

    Backbone and head have the names they have in the architecture's own `...ForSequenceClassification`,
    so that adapters saved from either have the same tensor names. Use `PooledClassifier.load`.
    """

    family: Family
    pooling: Pooling

    @staticmethod
    def load(
        base: str, num_labels: int, pooling: Pooling, problem_type: ProblemType = "single_label"
    ) -> PreTrainedModel:
        """A base model (folder, hub id or the embedded one) with a fresh head; `native` takes the stock class."""
        folder = locate(base)
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels, problem_type=PROBLEM_TYPES[problem_type])
        settings = {"config": config, "dtype": torch.float32}  # heads are trained in full precision
        if pooling == "native":
            native: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder, **settings)
            return native
        model: PreTrainedModel = _class_for(family_of_folder(folder), pooling, type(config)).from_pretrained(
            folder, **settings
        )
        return model

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.family.prefix, AutoModel.from_config(config, **self.family.model_options))
        self.dropout = nn.Dropout(0.1)
        # a single logit, such as a number, has a mean, which a head cannot hold without a bias
        has_bias = self.family.head_has_bias or config.num_labels == 1
        head = nn.Linear(config.hidden_size, config.num_labels, bias=has_bias)
        setattr(self, self.family.head, head)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput:
        """input_ids, attention_mask [texts, tokens], padded on the right; logits [texts, labels].

        A prefix (past_key_values, and its share of the mask in front) leaves the positions of the text as they are.
        """
        backbone, head = getattr(self, self.family.prefix), getattr(self, self.family.head)
        if attention_mask is None:
            assert input_ids is not None, "either input_ids or attention_mask is needed"
            prefix = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = input_ids.new_ones(len(input_ids), prefix + input_ids.shape[1])
        if past_key_values is not None and input_ids is not None:
            positions = [self.family.positions(ids, self.config.pad_token_id) for ids in input_ids.tolist()]
            inputs["position_ids"] = torch.tensor(positions, device=input_ids.device)
            inputs["past_key_values"] = past_key_values
        output = backbone(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **inputs)
        pooled = _pool(output.last_hidden_state, attention_mask, self.pooling)  # [texts, hidden]
        logits = head(self.dropout(pooled))
        loss = ForSequenceClassificationLoss(labels, logits.float(), self.config) if labels is not None else None
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """One row per text from hidden [texts, tokens, hidden]."""
    mask = attention_mask[:, -hidden.shape[1] :]
    if pooling == "mean":
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    if pooling == "cls":
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1).long() - 1]


def _class_for(family: Family, pooling: Pooling, config_class: type) -> type[PooledClassifier]:
    """A subclass for one architecture: `from_pretrained` reads its settings from the class."""
    attributes = {
        "family": family,
        "pooling": pooling,
        "base_model_prefix": family.prefix,
        "config_class": config_class,
        "_supports_sdpa": True,
    }
    return type(f"Pooled{family.name.title()}", (PooledClassifier,), attributes)
