"""Small seeded base models and adapters, made with transformers and peft: the outside oracle of the tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import BeftConfig, IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from server.jobs import Job
from server.loaded_adapter import LoadedAdapter
from training.model import PooledClassifier
from training.peft_bottleneck import BottleneckConfig
from training.peft_head import HeadConfig

VOCABULARY = 600
MAX_LENGTH = 512
WORDS = [f"word{index}" for index in range(VOCABULARY - 8)]


ENCODER: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
# The first position of these is the one behind the padding token's id
ROBERTA = ENCODER | {"max_position_embeddings": MAX_LENGTH + 2, "pad_token_id": 1, "type_vocab_size": 1}
DECODER = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 112,
}
SIZES: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": {"dim": 48, "n_heads": 4, "n_layers": 2, "hidden_dim": 96},
    # in every second layer a token sees 16 others on either side
    "modernbert": ENCODER | {"local_attention": 32, "global_attn_every_n_layers": 2, "classifier_pooling": "mean"},
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
}


def make_base(folder: Path, model_type: str, seed: int = 0, **overrides: Any) -> Path:
    """Write a small random base model with a word-level tokenizer."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 2,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(model_type, **(shared | SIZES[model_type] | overrides))
    model: PreTrainedModel = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # the usual initialisation is so small that every text would look alike, and leaves biases at 0
            parameter.mul_(2).add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    make_tokenizer(model_type).save(str(folder / "tokenizer.json"))
    return folder


def make_tokenizer(model_type: str) -> Tokenizer:
    pad, unknown = ("[UNK]", "[PAD]") if SIZES[model_type].get("pad_token_id") == 1 else ("[PAD]", "[UNK]")
    vocabulary = {word: index for index, word in enumerate([pad, unknown, "[CLS]", "[SEP]", "<s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if SIZES[model_type] is not DECODER:
        types = ":1" if model_type == "bert" else ""
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair=f"[CLS] $A [SEP] $B{types} [SEP]{types}",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 4)]
        )
    return tokenizer


@dataclass(frozen=True)
class Names:
    """What an architecture calls the layers that methods act at, and what peft must be told of it."""

    query_value: list[str]
    attention_output: str
    feedforward: str
    ia3: str
    head: tuple[str, ...] = ()
    """Modules of the native head that peft has to be told to save."""
    lora_is_known: bool = True
    ia3_is_known: bool = True
    takes_prefix: bool = True


BERT_NAMES = Names(
    query_value=["query", "value"],
    attention_output="attention.output.dense",
    feedforward="output.dense",
    ia3=r".*(attention\.self\.(key|value)|layer\.\d+\.output\.dense)",
)
DECODER_NAMES = Names(["q_proj", "v_proj"], "o_proj", "down_proj", r".*\.(k_proj|v_proj|down_proj)")
NAMES = dict.fromkeys(SIZES, DECODER_NAMES) | {
    "bert": BERT_NAMES,
    "roberta": BERT_NAMES,
    "xlm-roberta": replace(BERT_NAMES, ia3_is_known=False),
    "camembert": replace(BERT_NAMES, lora_is_known=False, ia3_is_known=False),
    "distilbert": Names(
        query_value=["q_lin", "v_lin"],
        attention_output="out_lin",
        feedforward="lin2",
        ia3=r".*\.(k_lin|v_lin|lin2)",
        head=("pre_classifier",),
        lora_is_known=False,
        ia3_is_known=False,
        takes_prefix=False,
    ),
    "modernbert": Names(
        query_value=["Wqkv"],
        attention_output="attn.Wo",
        feedforward="mlp.Wo",
        ia3=r".*(attn\.Wqkv|mlp\.Wo)",
        head=("head",),
        lora_is_known=False,
        ia3_is_known=False,
        takes_prefix=False,
    ),
}


def peft_configs(model_type: str) -> dict[str, PeftConfig]:
    """One adapter configuration for every way a method can be set up on an architecture."""
    names = NAMES[model_type]
    feedforward = rf".*{names.feedforward}" if names is not BERT_NAMES else r".*layer\.\d+\.output\.dense"

    def task() -> dict[str, Any]:  # peft changes the list that it is given
        return {"task_type": "SEQ_CLS", "modules_to_save": list(names.head) or None}

    def lora(**changes: Any) -> LoraConfig:
        known = None if names.lora_is_known else names.query_value
        return LoraConfig(**(task() | {"r": 4, "lora_alpha": 12, "target_modules": known} | changes))

    configs: dict[str, PeftConfig] = {
        "lora-qv": lora(),
        "lora-all": lora(target_modules="all-linear"),
        "lora-rs": lora(use_rslora=True),
        "lora-patterns": lora(
            target_modules="all-linear",
            # in the order that peft's own file has them: it sorts the keys, and the first that matches wins
            rank_pattern=dict(sorted({r".*layers?\.1\..*": 2, names.query_value[-1]: 7}.items())),
            alpha_pattern=dict(sorted({r"layers?\.0\..*": 8, names.query_value[-1]: 3}.items())),
        ),
        "ia3-paper": IA3Config(**task(), target_modules=names.ia3, feedforward_modules=feedforward),
        "ia3-feedforward-only": IA3Config(
            **task(), target_modules=[names.feedforward], feedforward_modules=[names.feedforward]
        ),
        "bitfit": BeftConfig(**task(), target_modules="all-linear"),
        "bottleneck-houlsby": BottleneckConfig(
            **task(), bottleneck_size=9, scaling=0.5, target_modules=[names.attention_output, names.feedforward]
        ),
        "bottleneck-pfeiffer": BottleneckConfig(
            **task(), bottleneck_size=5, non_linearity="gelu", target_modules=[names.feedforward]
        ),
        "head": HeadConfig(**task()),
    }
    if names.ia3_is_known:
        configs["ia3-default"] = IA3Config(task_type="SEQ_CLS")
    if names.takes_prefix:
        configs["prefix"] = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=6)
        configs["prefix-one"] = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=1)
    return configs


def make_adapter(
    folder: Path, base: Path, config: PeftConfig, num_labels: int, seed: int, pooling: Any = "native"
) -> PeftModel:
    """Write a PEFT folder whose weights are far from doing nothing, and return the model that plain peft runs."""
    torch.manual_seed(seed)
    model = get_peft_model(PooledClassifier.load(str(base), num_labels, pooling), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # the first of two layers of a head would let little through
                is_first = "modules_to_save" in name and ("dense" in name or "pre_classifier" in name)
                parameter.add_(torch.randn_like(parameter) * (0.2 if is_first else 0.05))
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
