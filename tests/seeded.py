"""Small seeded base models and adapters, made with transformers and peft: the outside oracle of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import BeftConfig, IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedModel

from server.jobs import Job
from server.store import LoadedAdapter
from training.model import PooledClassifier
from training.peft_bottleneck import BottleneckConfig
from training.peft_head import HeadConfig

VOCABULARY = 600
MAX_LENGTH = 512
WORDS = [f"word{index}" for index in range(VOCABULARY - 8)]


def make_base(folder: Path, model_type: str, seed: int = 0, **overrides: Any) -> Path:
    """Write a small random base model with a word-level tokenizer."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 2,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": 0,
    }
    model: PreTrainedModel
    if model_type == "bert":
        sizes: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
        model = BertModel(BertConfig(**(shared | sizes | overrides)))
    else:
        sizes = {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 112,
        }
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **(shared | sizes | overrides)))
    with torch.no_grad():
        for parameter in model.parameters():
            # the usual initialisation is so small that every text would look alike, and leaves biases at 0
            parameter.mul_(2).add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    make_tokenizer(model_type).save(str(folder / "tokenizer.json"))
    return folder


def make_tokenizer(model_type: str) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if model_type == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 4)]
        )
    return tokenizer


def peft_configs(model_type: str) -> dict[str, PeftConfig]:
    """One adapter configuration for every way a method can be set up."""
    if model_type == "bert":
        value, attention_output, feedforward = "value", "attention.output.dense", ["output.dense"]
        regex: dict[str, Any] = {
            "target_modules": r".*(attention\.self\.(key|value)|layer\.\d+\.output\.dense)",
            "feedforward_modules": r".*layer\.\d+\.output\.dense",
        }
    else:
        value, attention_output, feedforward = "v_proj", "o_proj", ["down_proj"]
        regex = {
            "target_modules": r".*\.(k_proj|v_proj|down_proj)",
            "feedforward_modules": r".*\.down_proj",
        }
    lora: dict[str, Any] = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 12}
    return {
        "lora-qv": LoraConfig(**lora),
        "lora-all": LoraConfig(**lora, target_modules="all-linear"),
        "lora-rs": LoraConfig(**lora, use_rslora=True),
        "lora-patterns": LoraConfig(
            **lora,
            target_modules="all-linear",
            # in the order that peft's own file has them: it sorts the keys, and the first that matches wins
            rank_pattern={r".*layers?\.1\..*": 2, value: 7},
            alpha_pattern={r"layers?\.0\..*": 8, value: 3},
        ),
        "ia3-paper": IA3Config(task_type="SEQ_CLS", **regex),
        "ia3-default": IA3Config(task_type="SEQ_CLS"),
        "ia3-feedforward-only": IA3Config(
            task_type="SEQ_CLS", target_modules=feedforward, feedforward_modules=feedforward
        ),
        "prefix": PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=6),
        "prefix-one": PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=1),
        "bitfit": BeftConfig(task_type="SEQ_CLS", target_modules="all-linear"),
        "bottleneck-houlsby": BottleneckConfig(
            task_type="SEQ_CLS", bottleneck_size=9, scaling=0.5, target_modules=[attention_output, feedforward[0]]
        ),
        "bottleneck-pfeiffer": BottleneckConfig(
            task_type="SEQ_CLS", bottleneck_size=5, non_linearity="gelu", target_modules=feedforward
        ),
        "head": HeadConfig(task_type="SEQ_CLS"),
    }


def make_adapter(
    folder: Path, base: Path, config: PeftConfig, num_labels: int, seed: int, pooling: Any = "native"
) -> PeftModel:
    """Write a PEFT folder whose weights are far from doing nothing, and return the model that plain peft runs."""
    torch.manual_seed(seed)
    model = get_peft_model(PooledClassifier.load(str(base), num_labels, pooling), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    return model.eval()


@dataclass(frozen=True)
class Peer:
    """An adapter on both sides: as the server holds it, and as plain peft runs it."""

    loaded: LoadedAdapter
    oracle: PeftModel

    def job(self, token_ids: list[int]) -> tuple[Job, LoadedAdapter]:
        adapter_id, _, version = self.loaded.key.partition("@")
        return Job(adapter_id, version, tuple(token_ids), (0,) * len(token_ids)), self.loaded

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> Tensor:
        """What plain peft answers for this one text."""
        ids = torch.tensor([token_ids])
        result: Tensor = self.oracle(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        return result
