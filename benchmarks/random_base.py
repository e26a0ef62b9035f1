"""Base models of a known one's shape with random weights: for speed and memory, never for accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

SHAPES: dict[str, Mapping[str, Any]] = {
    "llama-1b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
}
"""By the name that the command takes; `llama-1b` is Llama 3.2 of 1.2 billion parameters."""


def write_base(folder: Path, shape: Mapping[str, Any], device: torch.device, seed: int = 0) -> Path:
    """Write the folder of a base model, in bfloat16 and without a tokenizer. device: where the weights are drawn."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder
