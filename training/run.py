"""Train one adapter: a plan on a data set, measured on validation and test, written as a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel
from transformers import AutoConfig

from server import __version__, base_model
from server.manifest import Manifest, Metric, TrainingFacts
from server.methods import Method, method_named
from training import adapter_writer, checkpoints, evaluation
from training.data import Asked, Splits, load
from training.evaluation import Calibration
from training.fit import Fitted, Work, fit, true_answers
from training.floor import floor
from training.recipe import Plan, Recipe
from training.sources import Columns

LIBRARIES = ("torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked for. work: folder for checkpoints, from which an interrupted run goes on; None keeps none."""

    data: str
    method: str
    output: Path
    base: str = base_model.EMBEDDED_ID
    seed: int = 0
    train_rows: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    columns: Columns = field(default_factory=Columns)
    problem_type: Asked = "auto"
    work: Path | None = None
    report_to: str = "none"
    overwrite: bool = False
    show_progress: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    folder: Path
    manifest: Manifest
    num_parameters: int


def train(run: Run) -> Outcome | None:
    """Train, measure and write one adapter. Raises DataError, RecipeError, BaseModelError or TrainingFailed.

    Under a launcher with several processes every one of them calls this; the first writes and returns the outcome.
    """
    adapter_writer.check_target(run.output, run.overwrite)
    method = method_named(run.method)
    folder = base_model.locate(run.base)
    family = base_model.family_of_folder(folder)
    method.check_family(family)
    splits = load(run.data, run.train_rows, run.seed, run.columns, run.problem_type)
    limit = family.length_limit(AutoConfig.from_pretrained(folder))
    plan = run.recipe.settle(method, family, len(splits.train), limit)
    if run.work is not None:
        _claim(run.work, method, plan, splits, run.seed, base_model.fingerprint(folder))
    with TemporaryDirectory() as scratch:
        work = Work(
            folder=run.work or Path(scratch),
            keeps_checkpoints=run.work is not None,
            report_to=run.report_to,
            name=run.output.name,
            show_progress=run.show_progress,
        )
        fitted = fit(splits, folder, method, plan, run.seed, work)
        manifest = keep(fitted, splits, method, plan, run.base, run.seed, run.output)
    if manifest is None:
        return None
    return Outcome(run.output, manifest, fitted.num_adapter_parameters + fitted.num_head_parameters)


def keep(
    fitted: Fitted, splits: Splits, method: Method[Any], plan: Plan, base: str, seed: int, output: Path
) -> Manifest | None:
    """Measure an adapter and write its folder. Of several processes all call this, and only the first one writes."""
    measured, calibration = _measure(fitted, splits)
    if not fitted.is_first_process:
        return None
    fingerprint = base_model.fingerprint(base_model.locate(base))
    draft = Manifest(
        method=method.name,
        labels=splits.labels,
        problem_type=splits.problem_type,
        max_length=plan.max_length,
        pooling=plan.pooling,
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        base_name=base_model.name_of(base, fingerprint),
        base_fingerprint=fingerprint,
        weights_sha256="",
        # the stock classes take what peft gives them, ours keeps the positions
        positions="shifted" if method.at_attention and plan.pooling == "native" else "kept",
        training=_facts(splits, seed, plan, {**measured, **floor(splits)}, fitted.train_s),
    )
    assert isinstance(fitted.model, PeftModel), "a method of PEFT trains a model of PEFT"
    return adapter_writer.write(fitted.model, draft, output)


def _facts(splits: Splits, seed: int, plan: Plan, measured: Mapping[str, Metric], train_s: float) -> TrainingFacts:
    return TrainingFacts(
        data_set=splits.name,
        num_train_rows=len(splits.train),
        num_validation_rows=len(splits.validation),
        seed=seed,
        recipe=asdict(plan),
        metrics=measured,
        train_s=train_s,
        code_version=__version__,
        library_versions={name: version(name) for name in LIBRARIES},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _claim(work: Path, method: Method[Any], plan: Plan, splits: Splits, seed: int, fingerprint: str) -> None:
    """Tie a folder of checkpoints to one run, so that no other run goes on from them. Raises RecipeError."""
    rows = hashlib.sha256(repr((splits.labels, splits.train, splits.validation)).encode()).hexdigest()
    identity = {
        "method": method.name,
        "recipe": asdict(plan),
        "seed": seed,
        "rows_sha256": rows,
        "base_fingerprint": fingerprint,
    }
    checkpoints.claim(work, identity)


def _measure(fitted: Fitted, splits: Splits) -> tuple[dict[str, Metric], Calibration]:
    """The figures of validation and test, and what was chosen on the validation rows."""
    truth, calibration = true_answers(splits), Calibration()
    measured: dict[str, Metric] = {}
    for split in ("validation", "test"):
        logits = fitted.predict(split)
        if split == "validation":
            calibration = evaluation.calibrate(splits.problem_type, truth[split], logits)
        found = evaluation.measure(splits.problem_type, truth[split], logits, calibration)
        measured |= {f"{split}_{name}": metric for name, metric in found.items()}
    return measured, calibration
