"""Llama-type decoders: Llama itself, Mistral, Qwen2 and Qwen3, whose layers have the same names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.families.base import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Llama(Family):
    """Pre-norm decoder with rotary positions and grouped keys; its own head reads the last token."""

    name = "llama"
    model_types = ("llama", "mistral", "qwen2", "qwen3")
    prefix = "model"
    head = "score"
    head_has_bias = False
    default_pooling = "last"
    uses_type_ids = False
    token_sites = re.compile(r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")
    lora_targets = ("q_proj", "v_proj")
    attention_output = r"layers\.\d+\.self_attn\.o_proj"
    feedforward_output = r"layers\.\d+\.mlp\.down_proj"
    ia3_targets = r".*\.(k_proj|v_proj|down_proj)"
    ia3_feedforward = r".*\.down_proj"

    def native_position(self, token_ids: Sequence[int], pad_id: int | None) -> int:
        """The last token that is not padding, even where a text itself ends in the padding token."""
        return next((i for i in reversed(range(len(token_ids))) if token_ids[i] != pad_id), 0)

    def length_limit(self, config: PretrainedConfig) -> int:
        """A model with sliding attention is used up to its window: so far every token sees the whole text."""
        limit, window = super().length_limit(config), getattr(config, "sliding_window", None)
        return min(limit, int(window)) if window else limit

    def has_window(self, config: PretrainedConfig) -> bool:
        return bool(getattr(config, "sliding_window", None))


FAMILY = Llama()
