"""The model that an adapter is trained on: a frozen backbone with a head, laid out as PEFT expects."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from server.base_model import family_of_folder, locate
from server.errors import RecipeError
from server.families import Family
from server.heads import head_modules
from server.manifest import Pooling, ProblemType

if TYPE_CHECKING:
    from training.recipe import Quantization

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
        base: str,
        num_labels: int,
        pooling: Pooling,
        problem_type: ProblemType = "single_label",
        quantize: Quantization | None = None,
    ) -> PreTrainedModel:
        """A base model (folder, hub id or the embedded one) with a fresh head; `native` takes the stock class.

        quantize: hold the linear layers of the backbone in that format. Raises RecipeError if it is not installed.
        """
        folder = locate(base)
        family = family_of_folder(folder)
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels, problem_type=PROBLEM_TYPES[problem_type])
        settings = {"config": config, "dtype": torch.float32}  # heads are trained in full precision
        if quantize is not None:
            settings["quantization_config"] = _quantization(quantize, family, config)
        classes: Any = (
            AutoModelForSequenceClassification if pooling == "native" else _class_for(family, pooling, type(config))
        )
        model: PreTrainedModel = classes.from_pretrained(folder, **settings)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # bitsandbytes 0.50 repacks weights on their first use outside of training, into a form that passes no
                # gradient on: from the first validation on, layers below would learn nothing, without a word
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
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


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep the input of every layer only, and compute the rest again for the backward pass (Chen et al. 2016)."""
    # the name has changed between the releases of transformers that are supported
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """One row per text from hidden [texts, tokens, hidden]."""
    mask = attention_mask[:, -hidden.shape[1] :]
    if pooling == "mean":
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    if pooling == "cls":
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1).long() - 1]


def _quantization(quantize: Quantization, family: Family, config: PretrainedConfig) -> BitsAndBytesConfig:
    """4 bits, their scales in 8 bits (QLoRA: Dettmers et al. 2023), the products in bfloat16."""
    if find_spec("bitsandbytes") is None:
        raise RecipeError(f"`quantize: {quantize}` needs bitsandbytes: pip install 'adaptermux[quantize]'")
    # what the checkpoint may lack begins at random, and would never be quantised
    fresh = [family.head, *head_modules(family.native_head(config)), *([family.pool] if family.pool else [])]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[f"{family.prefix}.{name}" if name == family.pool else name for name in fresh],
    )


def _class_for(family: Family, pooling: Pooling, config_class: type) -> type[PooledClassifier]:
    """A subclass for one architecture: `from_pretrained` reads its settings from the class."""
    attributes = {
        "family": family,
        "pooling": pooling,
        "base_model_prefix": family.prefix,
        "config_class": config_class,
        "_supports_sdpa": True,
        "supports_gradient_checkpointing": True,
    }
    return type(f"Pooled{family.name.title()}", (PooledClassifier,), attributes)
