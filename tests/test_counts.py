"""Trained parameters: what is derived from the shapes, what peft trains, and what the papers' formulas say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from server.base_model import BaseModel, sites_of
from server.families import family_of
from server.methods import methods
from training.footprint import Footprint, footprint
from training.recipe import Recipe


@dataclass(frozen=True)
class Shape:
    """The letters of the formulas: layers, width, width of keys and values, width of the feed-forward layer."""

    L: int
    d: int
    d_kv: int
    f: int
    is_decoder: bool = False


SHAPES = {
    "minilm": Shape(6, 384, 384, 1536),
    "bert-base": Shape(12, 768, 768, 3072),
    "llama-1b": Shape(16, 2048, 512, 8192, is_decoder=True),
}


def config_of(name: str) -> PretrainedConfig:
    shape = SHAPES[name]
    sizes: dict[str, Any] = {"hidden_size": shape.d, "num_hidden_layers": shape.L, "intermediate_size": shape.f}
    if shape.is_decoder:
        return AutoConfig.for_model("llama", **sizes, num_attention_heads=32, num_key_value_heads=8, pad_token_id=0)
    return AutoConfig.for_model("bert", **sizes, num_attention_heads=12)


def low_rank_query_value(r: int) -> Callable[[Shape], int]:
    """r (d_in + d_out) a target (Hu et al. 2022, section 4.2)."""
    return lambda s: s.L * r * (2 * s.d + s.d + s.d_kv)


def low_rank_everywhere(r: int) -> Callable[[Shape], int]:
    """Query, key, value, output; then the feed-forward's two layers, or three where it has a gate."""
    return lambda s: s.L * r * (4 * s.d + 2 * (s.d + s.d_kv) + (3 if s.is_decoder else 2) * (s.d + s.f))


def bottlenecks(num: int, m: int) -> Callable[[Shape], int]:
    """2 d m + m + d each (Houlsby et al. 2019, section 2.1); its trained layer norms, 4 L d more, are left frozen."""
    return lambda s: num * s.L * (2 * s.d * m + m + s.d)


def prefix(p: int) -> Callable[[Shape], int]:
    """Keys and values of every layer, without the projection that is dropped after training (Li and Liang 2021)."""
    return lambda s: 2 * s.L * p * s.d_kv


def vectors(s: Shape) -> int:
    """(Liu et al. 2022, section 3.3)"""
    return s.L * (2 * s.d_kv + s.f)


def biases(s: Shape) -> int:
    """Of every linear layer, which Llama's have none of by themselves.

    BitFit (Ben Zaken et al. 2022) also trains those of the layer norms, L 2 d + d more with that of the embeddings.
    """
    attention = s.d + 2 * s.d_kv + s.d
    return s.L * (attention + (2 * s.f + s.d if s.is_decoder else s.f + s.d))


def nothing(s: Shape) -> int:
    return 0


# method, its options, formula, then the published figures for the three shapes as far as there are any
COUNTS: list[tuple[str, dict[str, float], Callable[[Shape], int], tuple[int | None, int | None, int | None]]] = [
    ("lora", {"rank": 8}, low_rank_query_value(8), (73_728, 294_912, 851_968)),
    ("lora", {"rank": 16}, low_rank_query_value(16), (147_456, 589_824, 1_703_936)),
    ("lora", {"rank": 8, "all_linears": 1}, low_rank_everywhere(8), (331_776, 1_327_104, 5_636_096)),
    ("lora", {"rank": 16, "all_linears": 1}, low_rank_everywhere(16), (663_552, 2_654_208, 11_272_192)),
    ("bottleneck", {"size": 24}, bottlenecks(2, 24), (226_080, None, None)),
    ("bottleneck", {"size": 48}, bottlenecks(2, 48), (None, 1_789_056, None)),
    ("bottleneck", {"size": 128}, bottlenecks(2, 128), (None, None, 16_846_848)),
    ("bottleneck", {"size": 64}, bottlenecks(2, 64), (595_200, 2_379_264, 8_456_192)),
    ("bottleneck", {"size": 24, "after_attention": 0}, bottlenecks(1, 24), (113_040, None, None)),
    ("bottleneck", {"size": 48, "after_attention": 0}, bottlenecks(1, 48), (None, 894_528, None)),
    ("bottleneck", {"size": 128, "after_attention": 0}, bottlenecks(1, 128), (None, None, 8_423_424)),
    ("prefix", {"length": 10}, prefix(10), (46_080, 184_320, 163_840)),
    ("prefix", {"length": 20}, prefix(20), (92_160, 368_640, 327_680)),
    ("ia3", {}, vectors, (13_824, 55_296, 147_456)),
    ("bitfit", {}, biases, (25_728 - 13 * 384, 102_144 - 25 * 768, None)),
    ("head", {}, nothing, (0, 0, 0)),
    # blocks of equal size on MiniLM
    ("prefix", {"length": 16}, prefix(16), (73_728, None, None)),
    ("bottleneck", {"size": 16, "after_attention": 0}, bottlenecks(1, 16), (76_128, None, None)),
    ("bottleneck", {"size": 8}, bottlenecks(2, 8), (78_432, None, None)),
    ("lora", {"rank": 2, "all_linears": 1}, low_rank_everywhere(2), (82_944, None, None)),
    ("lora", {"rank": 1}, low_rank_query_value(1), (9_216, None, None)),
    ("lora", {"rank": 2}, low_rank_query_value(2), (18_432, None, None)),
    ("prefix", {"length": 3}, prefix(3), (13_824, None, None)),
    ("bottleneck", {"size": 2, "after_attention": 0}, bottlenecks(1, 2), (11_532, None, None)),
    ("bottleneck", {"size": 4, "after_attention": 0}, bottlenecks(1, 4), (20_760, None, None)),
    ("lora", {"rank": 36}, low_rank_query_value(36), (331_776, None, None)),
    ("prefix", {"length": 72}, prefix(72), (331_776, None, None)),
    ("bottleneck", {"size": 72, "after_attention": 0}, bottlenecks(1, 72), (334_512, None, None)),
    ("bottleneck", {"size": 36}, bottlenecks(2, 36), (336_816, None, None)),
]


def derived(name: str, given: dict[str, float], base: PretrainedConfig, num_labels: int = 6) -> Footprint:
    plan = Recipe(options=given).settle(methods()[name], family_of(base.model_type), 100, 512)
    return footprint(methods()[name], base, plan.options, plan.pooling, num_labels)


def trained_by_peft(name: str, given: dict[str, float], base: PretrainedConfig) -> Footprint:
    """In the architecture's own class, which has the layers that ours has."""
    family = family_of(base.model_type)
    plan = Recipe(options=given).settle(methods()[name], family, 100, 512)
    base.num_labels = 6
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of merging biases into layers that have none
        model = get_peft_model(
            AutoModelForSequenceClassification.from_config(base), methods()[name].peft_config(family, plan.options)
        )
    found = {key: weight.numel() for key, weight in model.named_parameters() if weight.requires_grad}
    head = sum(number for key, number in found.items() if "modules_to_save" in key)
    return Footprint(sum(found.values()) - head, head)


@pytest.mark.parametrize("shape_name", SHAPES)
@pytest.mark.parametrize(
    ("name", "given", "formula", "published"),
    COUNTS,
    ids=["-".join([name, *(f"{key}={value:g}" for key, value in given.items())]) for name, given, *_ in COUNTS],
)
def test_trained_parameters_are_what_the_paper_says_and_what_peft_trains(
    name: str,
    given: dict[str, float],
    formula: Callable[[Shape], int],
    published: tuple[int | None, ...],
    shape_name: str,
) -> None:
    count = derived(name, given, config_of(shape_name))
    assert count.num_adapter_parameters == formula(SHAPES[shape_name])
    figure = published[list(SHAPES).index(shape_name)]
    assert figure in (None, count.num_adapter_parameters)
    assert trained_by_peft(name, given, config_of(shape_name)) == count


def test_every_method_is_counted() -> None:
    assert {name for name, *_ in COUNTS} == set(methods())


@pytest.mark.parametrize(("shape_name", "num_labels", "expected"), [
    ("minilm", 2, 770), ("minilm", 6, 2_310), ("bert-base", 6, 6 * 769),
    ("llama-1b", 6, 6 * 2048), ("llama-1b", 1, 2049),
])  # fmt: skip
def test_a_head_has_a_row_a_label_and_a_bias_where_the_family_or_a_number_asks_for_it(
    shape_name: str, num_labels: int, expected: int
) -> None:
    count = derived("head", {}, config_of(shape_name), num_labels)
    assert count.num_head_parameters == expected
    assert count.weight_bytes == 4 * expected


def test_sites_are_known_from_the_configuration_alone(base: BaseModel) -> None:
    loaded = {name: site for name, site in base.sites.items() if not base.is_pool_site(name)}
    assert sites_of(AutoConfig.from_pretrained(base.folder), base.family) == loaded
