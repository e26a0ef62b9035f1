"""The model card of an adapter: what the hub reads of it, and what people must be told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, ModelCardData

from server.manifest import Manifest, Metric, ProblemType, TrainingFacts
from training.model_card import HUB_TYPES, NAMES, model_card

METRICS = {
    "single_label": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson", "spearman", "rmse"),
}


def manifest_of(kind: ProblemType, data_set: str = "reviews") -> Manifest:
    metrics = {
        f"{split}_{name}": Metric(0.5 + len(name) / 100, 0.25, 0.75, rows)
        for split, rows in (("validation", 40), ("test", 60), ("floor_test", 60))
        for name in METRICS[kind]
    }
    facts = TrainingFacts(
        data_set=data_set,
        num_train_rows=300,
        num_validation_rows=40,
        seed=7,
        recipe={"epochs": 3, "options": {"rank": 8}},
        metrics=metrics,
        train_s=12.3,
        code_version="0.1",
        library_versions={"torch": "2.13", "peft": "0.21"},
        created="2025-01-02T03:04:05+00:00",
    )
    return Manifest(
        method="lora",
        labels=("animals", "two\nlines", "c: [x]"),
        problem_type=kind,
        max_length=128,
        pooling="mean",
        temperature=1.25,
        base_name="organisation/base",
        base_fingerprint="0" * 64,
        weights_sha256="1" * 64,
        training=facts,
    )


def header_of(manifest: Manifest, name: str = "my-adapter") -> ModelCardData:
    data = ModelCard(model_card(manifest, name)).data
    assert isinstance(data, ModelCardData)
    return data


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_the_hub_reads_every_test_figure_of_the_card_and_no_other(kind: ProblemType) -> None:
    manifest = manifest_of(kind)
    assert manifest.training is not None
    header = header_of(manifest)
    assert header.base_model == "organisation/base"
    assert header.library_name == "peft"
    assert header.model_name == "my-adapter"
    results = header.eval_results
    assert results is not None
    assert [one.metric_name for one in results] == [NAMES[name] for name in NAMES if name in METRICS[kind]]
    for one, name in zip(results, [name for name in NAMES if name in METRICS[kind]], strict=True):
        assert one.metric_type == HUB_TYPES.get(name, name)
        assert one.metric_value == pytest.approx(manifest.training.metrics[f"test_{name}"].value)
        assert (one.task_type, one.dataset_name, one.dataset_split) == ("text-classification", "reviews", "test")


def test_a_name_that_yaml_reads_otherwise_stays_what_it_is() -> None:
    header = header_of(manifest_of("single_label", data_set="no: [1]\n---"), "1e3")
    assert header.model_name == "1e3"
    assert header.eval_results is not None
    assert header.eval_results[0].dataset_name == "no: [1]\n---"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("single_label", ("a text that belongs to none of them", "temperature of 1.25")),
        ("multi_label", ("none of the labels", "A label counts from a score of 0.5")),
        ("regression", ("nothing says how sure",)),
    ],
)
def test_the_card_tells_data_figures_limits_and_use(kind: ProblemType, words: tuple[str, ...]) -> None:
    text = model_card(manifest_of(kind), "my-adapter")
    for word in (
        *words,
        "| train | 300 |",
        "| validation | 40 |",
        "| test | 60 |",
        "0.250 to 0.750",
        "cut to 128 tokens",
        "Seed 7",
        "torch 2.13",
        '| options | `{"rank": 8}` |',
        "adaptermux-serve --adapters FOLDER --base organisation/base",
        '"adapter_id": "my-adapter"',
        "animals, two lines, c: [x]",
    ):
        assert word in text, word
    assert ("## Calibration" in text) == (kind != "regression")


def test_a_data_set_of_the_hub_is_linked_and_a_file_is_not() -> None:
    linked = header_of(manifest_of("single_label", "organisation/set"))
    assert linked.datasets == ["organisation/set"]
    assert header_of(manifest_of("single_label")).datasets is None


def test_a_card_without_test_figures_claims_none() -> None:
    manifest = manifest_of("single_label")
    assert manifest.training is not None
    header = header_of(replace(manifest, training=replace(manifest.training, metrics={})))
    assert header.eval_results is None
