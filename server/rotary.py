"""Rotary embeddings whose frequencies depend on the longest text of a batch: held, so that no text's answer does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DEPENDENT = ("dynamic", "longrope")


def hold(backbone: nn.Module) -> None:
    """Keep the frequencies that texts have up to `length_limit`, however long others in the batch are."""
    module: Any
    for module in backbone.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):  # one for each kind of layer
            module.rope_type = {layer: _held(one) for layer, one in kind.items()}
        elif kind is not None:
            module.rope_type = _held(kind)


def length_limit(config: PretrainedConfig) -> int:
    """Tokens of the longest text that has these frequencies."""
    limit = int(config.max_position_embeddings)
    parameters: Any = getattr(config, "rope_parameters", None) or {}
    for one in [parameters] if "rope_type" in parameters else parameters.values():
        if one["rope_type"] in DEPENDENT:
            limit = min(limit, int(one.get("original_max_position_embeddings") or limit))
    return limit


def _held(kind: str) -> str:
    return "default" if kind in DEPENDENT else kind
