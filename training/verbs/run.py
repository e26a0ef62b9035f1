"""`adaptermux-train run`: train one adapter."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import RecipeError
from server.manifest import PROBLEM_TYPES
from training.options import NUM_SEEDS

if TYPE_CHECKING:
    from training.run import Outcome
    from training.sources import Columns

HELP = "train one adapter and write its folder"
DESCRIPTION = "Train one adapter."
EXAMPLE = (
    "adaptermux-train run --data training/data/device_reviews --method lora --output adapters/device-reviews --seed 0"
)

KINDS = {"single_label": "one label a text", "multi_label": "several labels a text", "regression": "a number a text"}
ROWS = {
    "validation_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "validation_micro_f1": "validation micro-F1",
    "test_micro_f1": "test micro-F1",
    "test_macro_f1": "test macro-F1",
    "test_subset_accuracy": "test, all labels of a text right",
    "validation_pearson": "validation Pearson",
    "test_pearson": "test Pearson",
    "test_spearman": "test Spearman",
    "test_rmse": "test RMSE",
    "floor_test_accuracy": "floor: TF-IDF + logistic regression",
    "floor_test_micro_f1": "floor: TF-IDF + logistic, micro-F1",
    "floor_test_pearson": "floor: TF-IDF + ridge, Pearson",
}
"""What the table shows of a run, as far as its problem type has it."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a run can be told."""
    parser.add_argument("--data", required=True, help="folder with train.csv, a .csv or .jsonl file, or hub:name")
    parser.add_argument("--method", required=True, help="bitfit, bottleneck, head, ia3, lora or prefix")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; its name is the adapter's id")
    parser.add_argument(
        "--base", default="sentence-transformers/all-MiniLM-L6-v2", help="folder or hub id (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes the rows, their order and the weights (%(default)s)")
    parser.add_argument("--train-rows", type=int, help="use that many training rows, stratified by label")
    parser.add_argument("--recipe", type=Path, help="TOML or JSON file with training settings")
    add_memory_flags(parser)
    add_column_flags(parser)
    parser.add_argument(
        "--problem-type",
        choices=("auto", *PROBLEM_TYPES),
        default="auto",
        help="one label a text, several (a list, or names joined by |), or a number; auto reads it off lists and "
        "fractions in .jsonl and hub data, and takes one label otherwise",
    )
    parser.add_argument("--work-dir", type=Path, help="keep checkpoints here and go on from the last one")
    parser.add_argument(
        "--report-to", default="none", help="a tracker that transformers knows: tensorboard, trackio, wandb, mlflow"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output folder that exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_memory_flags(parser: argparse.ArgumentParser) -> None:
    """What makes a large base fit; both are fields of a recipe, too."""
    parser.add_argument(
        "--quantize", choices=("nf4",), help="hold the frozen base in 4 bits while training; needs adaptermux[quantize]"
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory for activations, about a third more time"
    )


def add_column_flags(parser: argparse.ArgumentParser) -> None:
    """Where texts and labels stand."""
    parser.add_argument("--text-column", help="column of the texts")
    parser.add_argument("--pair-column", help="column of the second texts, for pairs")
    parser.add_argument("--label-column", help="column of the labels, or of the numbers")


def columns_of(flags: argparse.Namespace) -> Columns:
    """What the flags of `add_column_flags` say."""
    from training.sources import Columns

    return Columns(flags.text_column, flags.pair_column, flags.label_column)


def memory_settings(flags: argparse.Namespace) -> dict[str, object]:
    """The fields of a recipe that the flags of `add_memory_flags` set."""
    found: dict[str, object] = {}
    if flags.quantize is not None:
        found["quantize"] = flags.quantize
    if flags.gradient_checkpointing:
        found["gradient_checkpointing"] = True
    return found


def run(flags: argparse.Namespace) -> int:
    if flags.train_rows is not None and flags.train_rows < 1:
        raise RecipeError(f"--train-rows is {flags.train_rows}, it must be at least 1")
    if not 0 <= flags.seed < NUM_SEEDS:
        raise RecipeError(f"--seed is {flags.seed}, it must be 0 to {NUM_SEEDS - 1}")
    from training import trackers
    from training.recipe import Recipe, read_recipe
    from training.run import Run, train

    recipe = read_recipe(flags.recipe) if flags.recipe else Recipe()
    with trackers.reporting(flags.report_to, flags.output, flags.work_dir):
        outcome = train(
            Run(
                data=flags.data,
                method=flags.method,
                output=flags.output,
                base=flags.base,
                seed=flags.seed,
                train_rows=flags.train_rows,
                recipe=recipe.model_copy(update=memory_settings(flags)),
                columns=columns_of(flags),
                problem_type=flags.problem_type,
                work=flags.work_dir,
                report_to=flags.report_to,
                overwrite=flags.overwrite,
                show_progress=not flags.quiet,
            )
        )
    if outcome is not None:
        print(json.dumps(_record(outcome), indent=2) if flags.json else _table(outcome))
    return 0


def _record(outcome: Outcome) -> dict[str, object]:
    return {
        "folder": str(outcome.folder),
        "num_parameters": outcome.num_parameters,
        "manifest": asdict(outcome.manifest),
    }


def _table(outcome: Outcome) -> str:
    facts = outcome.manifest.training
    assert facts is not None, "a trained adapter has training facts"
    kind = KINDS[outcome.manifest.problem_type]
    lines = [
        f"{outcome.folder}: {outcome.manifest.method}, {outcome.num_parameters:,} trained parameters, "
        f"{facts.num_train_rows:,} rows of {facts.data_set}, {kind}, {facts.train_s:.1f} s"
    ]
    for key, name in ROWS.items():
        metric = facts.metrics.get(key)
        if metric is None:
            continue
        lines.append(f"  {name:<36} {metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]  n={metric.num_rows}")
    if outcome.manifest.problem_type == "multi_label":
        lines.append(f"  {'threshold, chosen on validation':<36} {outcome.manifest.threshold:.2f}")
    return "\n".join(lines)
