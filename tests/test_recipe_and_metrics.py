"""Recipes, and the figures that a run reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from server.errors import RecipeError
from server.families import families
from server.methods import methods
from training.data import Row
from training.metrics import accuracy, fit_temperature, floor_accuracy, macro_f1
from training.recipe import Recipe, read_recipe

FAMILY = families()["bert"]


def test_defaults_are_the_methods_own() -> None:
    for method in methods().values():
        recipe = Recipe().settle(method, FAMILY, 2000, 512)
        assert recipe.learning_rate == method.learning_rate
        assert recipe.head_learning_rate == method.head_learning_rate
        assert recipe.weight_decay == method.weight_decay
        assert recipe.epochs == 3


@pytest.mark.parametrize(("num_rows", "epochs"), [(100, 20), (600, 10), (2000, 3), (50_000, 3)])
def test_passes_follow_the_number_of_rows(num_rows: int, epochs: int) -> None:
    assert Recipe().settle(methods()["lora"], FAMILY, num_rows, 512).epochs == epochs


@pytest.mark.parametrize(("value", "fine"), [(1, True), (0, False), (4096, True), (4097, False)])
def test_options_are_checked_at_their_limits(value: float, fine: bool) -> None:
    recipe = Recipe(options={"rank": value})
    if fine:
        assert recipe.settle(methods()["lora"], FAMILY, 10, 512).options["rank"] == value
    else:
        with pytest.raises(RecipeError, match="rank"):
            recipe.settle(methods()["lora"], FAMILY, 10, 512)


def test_an_option_of_another_method_is_refused() -> None:
    with pytest.raises(RecipeError, match="`rank` is unknown to method ia3"):
        Recipe(options={"rank": 8}).settle(methods()["ia3"], FAMILY, 10, 512)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("learning_rat = 1", "did you mean `learning_rate`"),
        ("learning_rate = -1", "learning_rate"),
        ('pooling = "max"', "pooling"),
        ("epochs = ", "cannot be read"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=word):
        read_recipe(path)


def test_json_recipes_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"epochs": 2, "options": {"rank": 4}}')
    assert read_recipe(path) == Recipe(epochs=2, options={"rank": 4})


def test_accuracy_has_the_wilson_interval() -> None:
    """81 of 263, Newcombe 1998, table I: 0.2553 to 0.3662."""
    truth = np.ones(263, dtype=np.int64)
    predicted = np.array([1] * 81 + [0] * 182)
    metric = accuracy(truth, predicted)
    assert metric.value == 81 / 263
    assert metric.low == pytest.approx(0.2553, abs=5e-5)
    assert metric.high == pytest.approx(0.3662, abs=5e-5)


def test_macro_f1_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    metric = macro_f1(truth, predicted, 5)
    assert metric.value == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert metric.low < metric.value < metric.high


def test_macro_f1_leaves_out_labels_that_never_occur() -> None:
    truth = np.array([0, 0, 1, 1])
    assert macro_f1(truth, truth, 9).value == 1.0


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_temperature_undoes_overconfidence(factor: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 4)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in chances])
    assert fit_temperature(logits * factor, truth) == pytest.approx(factor, rel=0.1)


def test_the_temperature_stays_1_where_the_rows_cannot_tell() -> None:
    assert fit_temperature(np.eye(3) * 10, np.arange(3)) == 1.0
    assert fit_temperature(np.eye(3), np.arange(3)[::-1].copy()) == 1.0


def test_the_longest_text_is_what_the_base_reads_and_512_at_most() -> None:
    lora = methods()["lora"]
    assert Recipe().settle(lora, FAMILY, 10, 128).max_length == 128
    assert Recipe().settle(lora, FAMILY, 10, 131_072).max_length == 512
    assert Recipe(max_length=600).settle(lora, FAMILY, 10, 600).max_length == 600
    with pytest.raises(RecipeError, match="at most 600"):
        Recipe(max_length=601).settle(lora, FAMILY, 10, 600)


def test_rows_without_words_have_no_floor() -> None:
    rows = [Row("a", None, "up"), Row("b", None, "down")]
    assert floor_accuracy(rows, rows) is None


def test_the_floor_learns_words() -> None:
    train = [Row(f"good fine {i}", None, "up") for i in range(20)] + [
        Row(f"bad poor {i}", None, "down") for i in range(20)
    ]
    floor = floor_accuracy(train, [Row("good", None, "up"), Row("poor", None, "down")])
    assert floor is not None
    assert floor.value == 1.0
