"""Parameters by formula, for bases that nothing was measured on: what the server counts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig

from decision.base_shape import BaseShape, bases, nearest
from decision.errors import FactsError
from decision.fit import adapter_bytes
from decision.literature import chapters
from decision.method_facts import facts_of, methods
from decision.quality import Candidate
from decision.question import Question
from decision.rows import BASELINES
from server.families import family_of
from server.methods import method_named
from server.methods import methods as served_methods
from training.command import make_parser
from training.footprint import footprint
from training.grid_plan import read_plan
from training.options import options_of

ROOT = Path(__file__).parent.parent
PLAN = read_plan(ROOT / "training" / "plans" / "cpu.toml")
TRAINED = [(one.method, dict(one.options)) for one in PLAN.candidates if one.method not in BASELINES]
PUBLISHED = [(chapter.method, dict(chapter.options)) for chapter in chapters().values()]


def config_of(shape: BaseShape) -> PretrainedConfig:
    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "intermediate_size": shape.feedforward,
    }  # fmt: skip
    if shape.kind == "encoder":
        return AutoConfig.for_model("bert", **sizes, num_attention_heads=12)
    heads = 32
    keys = heads * shape.keys // shape.hidden
    return AutoConfig.for_model("llama", **sizes, num_attention_heads=heads, num_key_value_heads=keys, pad_token_id=0)


@pytest.mark.parametrize("name", bases())
@pytest.mark.parametrize(("method", "given"), [*TRAINED, *PUBLISHED])
def test_the_formulas_count_what_the_server_counts(name: str, method: str, given: dict[str, float]) -> None:
    shape, own = bases()[name], method_named(method)
    options = options_of(own, given)
    count = footprint(own, config_of(shape), options, family_of(config_of(shape).model_type).default_pooling, 6)
    assert facts_of(method).num_parameters(shape, options) == count.num_adapter_parameters
    assert shape.head_parameters(6) == count.num_head_parameters


def test_every_method_of_the_server_and_of_the_comparison_has_its_facts() -> None:
    assert set(methods()) == {*served_methods(), *BASELINES}


def test_a_method_that_is_not_known_is_taken_for_nothing() -> None:
    unknown = facts_of("another")
    assert not unknown.merges
    assert unknown.num_parameters(bases()["minilm"], {}) is None


def test_a_formula_that_asks_for_what_is_not_given_counts_nothing() -> None:
    assert facts_of("prefix").num_parameters(bases()["minilm"], {}) is None


def test_a_formula_that_does_more_than_add_and_multiply_is_refused() -> None:
    facts = facts_of("ia3").model_copy(update={"parameters": "__import__('os').getpid()"})
    with pytest.raises(FactsError, match="is no sum"):
        facts.num_parameters(bases()["minilm"], {})


def test_other_labels_change_the_head_only() -> None:
    candidate = Candidate("a", "ia3", {}, {}, 13_824, 2_310, 6, 67_008, 1.0)
    six, seven = (
        adapter_bytes(candidate, Question(task_type="topic", train_rows=1, num_labels=labels), "minilm")
        for labels in (6, 7)
    )
    assert six == 67_008
    assert seven == 67_008 + 385 * 4


def test_an_unknown_base_has_the_shape_of_the_nearest_one_and_its_own_parameters() -> None:
    found = nearest(6.5e9)
    assert found.hidden == bases()["mistral-7b"].hidden
    assert found.parameters == 6_500_000_000
    assert found.id not in {base.id for base in bases().values()}


@pytest.mark.parametrize("name", chapters())
def test_what_would_measure_a_chapter_of_the_literature_is_a_command_or_there_is_none(name: str) -> None:
    chapter = chapters()[name]
    if not chapter.command:
        assert chapter.needs
        return
    program, *arguments = shlex.split(chapter.command)
    assert program == "adaptermux-train"
    assert make_parser().parse_args(arguments)
    [plan] = [arguments[arguments.index("--plan") + 1]] if "--plan" in arguments else [None]
    assert plan is None or (ROOT / plan).exists() or f"{plan}: " in chapter.needs
