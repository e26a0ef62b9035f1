"""Prefix tuning: learned keys and values in front of every attention layer (Li and Liang 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from server.errors import AdapterDamaged
from server.methods.base import AttentionSite, KeysValues, Method, Site

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family

PREFIX = "prompt_embeddings"
MAX_PREFIX = 256


class Prefix(Method[KeysValues]):
    """head = Attn(q, [P_K; K], [P_V; V]). PEFT stores [prefix, 2 x layers x heads x head_dim], K and V in turn.

    PEFT also counts the prefix as positions: a text's own begin behind it. Our model class keeps them at 0, which
    learns better; the manifest says which it was.
    """

    name = "prefix"
    peft_type = "PREFIX_TUNING"
    roles = (PREFIX,)
    at_attention = True
    learning_rate = 2e-2
    options: ClassVar = {"length": (20, 1, MAX_PREFIX)}
    known_fields = frozenset(
        (
            "encoder_hidden_size",
            "init_weights",
            "num_attention_heads",
            "num_layers",
            "num_transformer_submodules",
            "num_virtual_tokens",
            "prefix_projection",  # only what it came to is saved
            "token_dim",
        )
    )

    def shape(
        self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        length = config.get("num_virtual_tokens")
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MAX_PREFIX:
            raise AdapterDamaged(
                f"`num_virtual_tokens` is {length!r}, it must be a whole number from 1 to {MAX_PREFIX}"
            )
        return (length, site.in_features)

    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> KeysValues:
        assert isinstance(site, AttentionSite), "the prefix acts at the attention site; this is a bug"
        stored = tensors[PREFIX]
        pairs = stored.view(len(stored), site.num_layers, 2, site.num_heads, site.head_dim)
        keys, values = pairs.permute(2, 1, 3, 0, 4).unbind()  # [layers, heads, prefix, head_dim]
        return KeysValues(keys, values)

    def num_virtual_tokens(self, options: Mapping[str, float]) -> int:
        return int(options["length"])

    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=int(options["length"]))


METHOD = Prefix()
