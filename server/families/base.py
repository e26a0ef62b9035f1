"""What the rest of the code must know about an architecture, and nothing else does."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from server.manifest import Pooling


class PostNormLayer(NamedTuple):
    """Where the modules of layer `{}` of a post-norm encoder lie in the backbone (Vaswani et al. 2017)."""

    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


class Family(ABC):
    """One architecture: the names of its linear sites, its own pooling rule and its head.

    A base model is loaded without a head (`AutoModel`), called the backbone here. Under PEFT the
    backbone sits below `prefix` and the head below `head`, as in the architecture's own
    `...ForSequenceClassification`; adapter files carry those names.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in `config.json`."""
    prefix: ClassVar[str]
    """Attribute of the classification model that holds the backbone."""
    head: ClassVar[str]
    """Attribute of the classification model that holds the head."""
    head_has_bias: ClassVar[bool]
    default_pooling: ClassVar[Pooling]
    uses_type_ids: ClassVar[bool]
    token_sites: ClassVar[re.Pattern[str]]
    """Linear layers of the backbone that see every token."""
    pool: ClassVar[str | None] = None
    """Attribute of the backbone that holds the architecture's own pooling module, if it has weights."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Where LoRA acts by default: query and value (Hu et al. 2022, section 4.2)."""
    attention_output: ClassVar[str]
    """Regular expression, from the backbone on: the linear layer that ends the attention sub-layer."""
    feedforward_output: ClassVar[str]
    """The same for the feed-forward sub-layer."""
    ia3_targets: ClassVar[str]
    """Regular expression: keys, values and the feed-forward's second layer (Liu et al. 2022, section 3.3)."""
    ia3_feedforward: ClassVar[str]

    post_norm_layer: ClassVar[PostNormLayer | None] = None
    """Set where `server.packed_encoder` can run the layers; otherwise the library's own model code does."""

    @abstractmethod
    def native_position(self, token_ids: Sequence[int], pad_id: int | None) -> int:
        """Which token of a text the architecture's own head reads."""

    @abstractmethod
    def native_pool(self, hidden: Tensor, pool: nn.Module | None) -> Tensor:
        """What the architecture's own head makes of those tokens' hidden states; [texts, hidden] to the same."""
