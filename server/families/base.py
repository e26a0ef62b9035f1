"""What the rest of the code must know about an architecture, and nothing else does."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor, nn

from server import rotary
from server.heads import Layer
from server.manifest import Pooling

if TYPE_CHECKING:
    from transformers import PretrainedConfig


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
    """Attribute of the classification model that holds the head's last layer, or all of it."""
    head_has_bias: ClassVar[bool]
    default_pooling: ClassVar[Pooling]
    uses_type_ids: ClassVar[bool]
    takes_prefix: ClassVar[bool] = True
    """Whether the library's attention takes keys and values that precede a text's own."""
    model_options: ClassVar[Mapping[str, object]] = {}
    """What `AutoModel` is told beside the configuration."""
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

    def linear_head(self) -> tuple[Layer, ...]:
        """The head behind a pooling of ours, as `training.model.PooledClassifier` has it."""
        return (Layer(self.head, self.head_has_bias),)

    def native_head(self, config: PretrainedConfig) -> tuple[Layer, ...]:
        """The layers of the architecture's own head, first to last, behind its own pooling."""
        return self.linear_head()

    def native_pooling(self, config: PretrainedConfig) -> Pooling:
        """Which pooling of ours the architecture's own head reads; `native` leaves it to the two methods below."""
        return "native"

    def native_position(self, token_ids: Sequence[int], pad_id: int | None) -> int:
        """Which token of a text the architecture's own head reads."""
        return 0

    def native_pool(self, hidden: Tensor, pool: nn.Module | None) -> Tensor:
        """What the architecture's own pooling makes of those tokens' hidden states; [texts, hidden] to the same."""
        return hidden

    def positions(self, token_ids: Sequence[int], pad_id: int | None, offset: int = 0) -> list[int]:
        """The position of every token of a text; offset: places that a prefix takes in front of it."""
        return list(range(offset, offset + len(token_ids)))

    def length_limit(self, config: PretrainedConfig) -> int:
        """Tokens that a text may have, special tokens included."""
        return rotary.length_limit(config)

    def has_window(self, config: PretrainedConfig) -> bool:
        """Whether the limit is a window of attention, of which a prefix takes its share."""
        return False

    def takes_type_ids(self, config: PretrainedConfig) -> bool:
        """Whether the model tells the second text of a pair from the first."""
        return self.uses_type_ids and getattr(config, "type_vocab_size", 2) > 1
