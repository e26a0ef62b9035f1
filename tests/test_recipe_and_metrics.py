"""Recipes, and the figures that a run reports."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score, root_mean_squared_error

from server.errors import RecipeError
from server.families import families
from server.manifest import ProblemType
from server.methods import methods
from training.data import Row, Splits
from training.evaluation import Calibration, calibrate, measure
from training.floor import floor
from training.metrics import (
    accuracy,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    macro_f1,
    micro_f1,
    pearson,
    reliability,
    rmse,
    spearman,
)
from training.recipe import Recipe, read_recipe
from training.scale import Scale

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


def calibration_error_by_hand(probabilities: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], num_bins: int) -> float:
    """Guo et al. 2017, equation 3, as their published code has it: bins open below, closed above."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    edges = np.linspace(0, 1, num_bins + 1)
    found = 0.0
    for low, high in itertools.pairwise(edges):
        here = (confidence > low) & (confidence <= high)
        if here.any():
            found += here.mean() * abs(right[here].mean() - confidence[here].mean())
    return found


@pytest.mark.parametrize(("num_labels", "num_bins"), [(2, 15), (4, 15), (150, 15), (4, 10), (4, 1)])
def test_the_calibration_error_equals_the_papers_own_code(num_labels: int, num_bins: int) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(num_labels, 0.3), 1000)
    truth = rng.integers(0, num_labels, 1000)
    wanted = calibration_error_by_hand(probabilities, truth, num_bins)
    assert expected_calibration_error(probabilities, truth, num_bins) == pytest.approx(wanted, abs=1e-12)
    assert sum(one.num_rows for one in reliability(probabilities, truth, num_bins)) == 1000


def test_the_calibration_error_is_0_for_the_sure_and_right_and_1_for_the_sure_and_wrong() -> None:
    probabilities, truth = np.eye(3), np.arange(3)
    assert expected_calibration_error(probabilities, truth) == 0.0
    assert expected_calibration_error(probabilities, np.roll(truth, 1)) == 1.0


def test_the_calibration_error_of_eighty_per_cent_sure_and_half_right_is_the_gap() -> None:
    probabilities = np.tile([0.8, 0.2], (10, 1))
    assert expected_calibration_error(probabilities, np.arange(10) % 2) == pytest.approx(0.3)


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


def several(num_rows: int, seed: int = 0) -> tuple[np.ndarray[Any, np.dtype[np.int64]], ...]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((num_rows, 4)) < (0.5, 0.2, 0.05, 0.0)).astype(np.int64)
    return truth, np.where(rng.random(truth.shape) < 0.1, 1 - truth, truth)


def test_measures_of_several_labels_equal_scikit_learn() -> None:
    truth, predicted = several(300)
    assert micro_f1(truth, predicted).value == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert macro_f1(truth, predicted, 4).value == pytest.approx(f1_score(truth, predicted, average="macro"))
    metric = accuracy(truth, predicted)
    assert metric.value == (truth == predicted).all(1).mean()
    assert metric.low < metric.value < metric.high


def test_measures_of_numbers_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, 200).astype(np.float64)
    predicted = truth + rng.normal(size=200)
    for ours, oracle in (
        (pearson, stats.pearsonr(truth, predicted).statistic),
        (spearman, stats.spearmanr(truth, predicted).statistic),
        (rmse, root_mean_squared_error(truth, predicted)),
    ):
        metric = ours(truth, predicted)
        assert metric.value == pytest.approx(oracle)
        assert metric.low < metric.value < metric.high
        assert metric.num_rows == 200


def test_a_constant_answer_correlates_with_nothing() -> None:
    assert pearson(np.arange(9.0), np.ones(9)) == pearson(np.ones(9), np.arange(9.0))
    assert spearman(np.arange(9.0), np.ones(9)).value == 0.0


def test_no_label_anywhere_is_no_success() -> None:
    nothing = np.zeros((5, 3), dtype=np.int64)
    assert micro_f1(nothing, nothing).value == 0.0
    assert macro_f1(nothing, nothing, 3).value == 0.0
    assert accuracy(nothing, nothing).value == 1.0


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_temperature_of_several_labels_undoes_overconfidence(factor: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 4)) * 2
    truth = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    assert fit_temperature(logits * factor, truth) == pytest.approx(factor, rel=0.1)
    assert fit_temperature(np.where(truth == 1, 1.0, -1.0), truth) == 1.0


def test_the_threshold_is_the_best_one_and_0_5_where_the_rows_cannot_tell() -> None:
    truth, _ = several(300)
    assert fit_threshold(np.asarray(truth * 0.3 + 0.1, dtype=np.float64), truth) == 0.4
    assert fit_threshold(truth.astype(np.float64), truth) == 0.5
    assert fit_threshold(np.zeros((5, 2)), np.zeros((5, 2), dtype=np.int64)) == 0.5


def test_several_labels_are_measured_at_the_threshold_and_numbers_are_left_alone() -> None:
    truth, _ = several(300)
    logits = np.asarray(truth * 2.0 - 3.0, dtype=np.float64)  # every logit below 0
    assert measure("multi_label", truth, logits, Calibration())["micro_f1"].value == 0.0
    calibration = calibrate("multi_label", truth, logits)
    assert calibration.threshold < 0.5
    assert measure("multi_label", truth, logits, calibration)["subset_accuracy"].value == 1.0
    assert calibrate("regression", np.arange(9.0), np.arange(9.0)[:, None]) == Calibration(1.0, 0.5)


def splits(*rows: Row, problem_type: ProblemType, labels: tuple[str, ...]) -> Splits:
    return Splits("made", problem_type, labels, list(rows), list(rows), list(rows))


def test_rows_without_words_have_no_floor() -> None:
    rows = [Row("a", None, "up"), Row("b", None, "down")]
    assert floor(splits(*rows, problem_type="single_label", labels=("down", "up"))) == {}


def test_the_floor_learns_words() -> None:
    both = [("good fine", "up"), ("bad poor", "down")]
    rows = [Row(f"{text} {i}", None, label) for text, label in both for i in range(20)]
    found = floor(splits(*rows, problem_type="single_label", labels=("down", "up")))
    assert found["floor_test_accuracy"].value == 1.0


@pytest.mark.parametrize("labels", [("cold", "wet"), ("wet",), ("cold", "never", "wet")])
def test_the_floor_learns_the_words_of_several_labels(labels: tuple[str, ...]) -> None:
    texts = [("rain", ("wet",)), ("snow", ("cold", "wet")), ("frost", ("cold",)), ("sun", ())]
    rows = [
        Row(f"{text} {i}", None, tuple(label for label in given if label in labels))
        for text, given in texts
        for i in range(20)
    ]
    found = floor(splits(*rows, problem_type="multi_label", labels=labels))
    assert found["floor_test_micro_f1"].value == 1.0


def test_the_floor_learns_the_words_of_numbers() -> None:
    rows = [Row(f"{text} {i}", None, number) for text, number in (("good", 5.0), ("bad", 1.0)) for i in range(20)]
    found = floor(splits(*rows, problem_type="regression", labels=("stars",)))
    assert found["floor_test_pearson"].value > 0.9


def in_their_unit(scale: Scale, small: NDArray[np.float32]) -> NDArray[np.float64]:
    """What is in the unit of training, in the data's."""
    return small.astype(np.float64) * scale.size + scale.centre


@pytest.mark.parametrize("has_bias", [True, False])
def test_numbers_keep_their_unit_through_a_folded_layer(has_bias: bool) -> None:
    numbers = np.random.default_rng(0).normal(300, 20, 500)
    scale = Scale.of(numbers, has_bias)
    small = scale.shrink(numbers)
    assert small.dtype == np.float32
    assert np.sqrt((small**2).mean()) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(in_their_unit(scale, small), numbers, rtol=1e-5)
    layer, x = torch.nn.Linear(3, 1, bias=has_bias), torch.randn(7, 3)
    before = layer(x).detach().numpy()
    scale.fold(layer)
    np.testing.assert_allclose(layer(x).detach().numpy(), in_their_unit(scale, before), rtol=1e-4)


def test_numbers_far_from_0_stay_different() -> None:
    numbers = 1.7e9 + np.arange(56.0)
    small = Scale.of(numbers, True).shrink(numbers)
    assert len(np.unique(small)) == 56
    np.testing.assert_allclose(in_their_unit(Scale.of(numbers, True), small), numbers, atol=1e-4, rtol=0)


def test_numbers_that_need_no_scale_are_float32_too() -> None:
    numbers = np.array([-1.0, 1.0])
    assert Scale.of(numbers, True) == Scale()
    assert Scale().shrink(numbers).dtype == np.float32


def test_numbers_that_are_all_the_same_can_be_shrunk() -> None:
    numbers = np.full(4, 7.0)
    assert Scale.of(numbers, True) == Scale(7.0, 1.0)
    assert Scale.of(np.zeros(4), False) == Scale()
