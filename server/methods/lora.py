"""LoRA: a low-rank update beside a frozen linear layer (Hu et al. 2022, equation 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from server.errors import AdapterDamaged, MethodUnsupported
from server.methods.base import MAX_RANK, Method, Segment, Site, matches
from server.products import LowRank, Operation

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family
    from server.products import Products

MAX_NUMBER = 1e6
DOWN, UP = "lora_A.weight", "lora_B.weight"

# These start from factors of W0 and change the base weights, which we do not have
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Lora(Method[LowRank]):
    """y += alpha / r * B A x; rsLoRA divides by sqrt(r) instead (Kalajdzievski 2023).

    Training puts it at queries and values, or at every linear layer that sees every token (`all_linears` 1).
    """

    name = "lora"
    peft_type = "LORA"
    roles = (DOWN, UP)
    learning_rate = 5e-3
    options: ClassVar = {
        "rank": (8, 1, MAX_RANK),
        "alpha": (16, 0.001, 65536),
        "dropout": (0.0, 0.0, 0.9),
        "all_linears": (0, 0, 1),
    }
    known_fields = frozenset(
        (
            "alpha_pattern",
            "eva_config",
            "init_lora_weights",
            "layers_pattern",
            "layers_to_transform",
            "lora_alpha",
            "lora_dropout",
            "megatron_core",
            "qalora_group_size",
            "r",
            "rank_pattern",
            "runtime_config",
            "use_rslora",
        )
    )

    def check_config(self, config: Mapping[str, object]) -> None:
        rest = {**config, "bias": None} if config.get("bias") == "none" else config
        super().check_config(rest)
        init = str(config.get("init_lora_weights", True)).lower()
        if init.startswith(BASE_CHANGING_INITS):
            raise MethodUnsupported(f"`init_lora_weights: {init}` changes the base weights, which this server shares")

    def shape(
        self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        rank = self._rank(config, site.name)
        return (rank, site.in_features) if role == DOWN else (site.out_features, rank)

    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> LowRank:
        rank = self._rank(config, site.name)
        alpha = self._number(config, "alpha_pattern", "lora_alpha", 8, site.name)
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        return LowRank(tensors[DOWN].mT, tensors[UP].mT, scale)

    def apply(self, x: Tensor, y: Tensor, segments: Sequence[Segment[LowRank]], products: Products) -> None:
        products.add_low_rank(x, y, segments)

    def operation(self, row: LowRank) -> Operation:
        return Operation("low_rank", row)

    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        from peft import LoraConfig

        every_site = rf"{family.prefix}\.{family.token_sites.pattern}"
        return LoraConfig(
            task_type="SEQ_CLS",
            r=int(options["rank"]),
            lora_alpha=options["alpha"],  # type: ignore[arg-type]
            lora_dropout=options["dropout"],
            target_modules=every_site if int(options["all_linears"]) else list(family.lora_targets),
        )

    def _rank(self, config: Mapping[str, object], site: str) -> int:
        rank = self._number(config, "rank_pattern", "r", 8, site)
        if rank != int(rank) or not 1 <= rank <= MAX_RANK:
            raise AdapterDamaged(f"rank of `{site}` is {rank}, it must be a whole number from 1 to {MAX_RANK}")
        return int(rank)

    def _number(self, config: Mapping[str, object], pattern: str, field: str, default: float, site: str) -> float:
        """The value of `field` at a site; the first key of `pattern` that ends the site's name wins, as in PEFT."""
        overrides = config.get(pattern) or {}
        value = config.get(field, default)
        if not isinstance(overrides, Mapping):
            raise AdapterDamaged(f"`{pattern}` in adapter_config.json must be an object")
        for key, override in overrides.items():
            if matches(key, site, pattern, whole=False):
                value = override
                break
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_NUMBER:
            raise AdapterDamaged(f"`{field}` of `{site}` is {value!r:.40}, it must be a number up to {MAX_NUMBER:,.0f}")
        return float(value)


METHOD = Lora()
