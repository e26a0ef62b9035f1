"""Train one adapter: a plan on a data set, measured on validation and test, written as a folder."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from server import __version__, base_model
from server.errors import RecipeError, TrainingFailed
from server.families import Family
from server.heads import head_modules
from server.manifest import Manifest, Metric, ProblemType, TrainingFacts
from server.methods import Method, method_named
from server.tokenizer import Tokenizer
from training import adapter_writer, evaluation
from training.data import Asked, Row, Splits, load, targets
from training.evaluation import Calibration
from training.floor import floor
from training.model import PooledClassifier
from training.progress import Bar
from training.recipe import Plan, Recipe
from training.scale import Scale
from training.sources import Columns
from training.texts import Padding, Texts

LIBRARIES = ("torch", "transformers", "peft", "accelerate")
EVALUATION_BATCH = 64
HEAD_WEIGHT_DECAY = 0.01


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
    _check_tracker(run.report_to)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    method = method_named(run.method)
    folder = base_model.locate(run.base)
    fingerprint = base_model.fingerprint(folder)
    family = base_model.family_of_folder(folder)
    method.check_family(family)
    splits = load(run.data, run.train_rows, run.seed, run.columns, run.problem_type)
    limit = family.length_limit(AutoConfig.from_pretrained(folder))
    plan = run.recipe.settle(method, family, len(splits.train), limit)
    if run.work is not None:
        _claim(run.work, method, plan, splits, run.seed, fingerprint)
    floors = floor(splits)

    tokenizer, truth = Tokenizer(folder), _truth(splits)
    has_bias = family.head_has_bias or plan.pooling != "native"
    scale = Scale.of(truth["train"], has_bias) if splits.problem_type == "regression" else None
    if scale is not None:
        truth = {name: scale.shrink(numbers) for name, numbers in truth.items()}
    sets = {name: Texts(rows, truth[name], tokenizer, plan.max_length) for name, rows in _by_name(splits).items()}
    set_seed(run.seed)
    model = _make_model(folder, plan, method, family, splits, sets["train"])
    with TemporaryDirectory() as scratch:
        trainer = _make_trainer(run, plan, model, family, splits.problem_type, sets, run.work or Path(scratch))
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run.work)) if run.work else None)
        train_s = time.perf_counter() - began
        if scale is not None:
            scale.fold(_last_layer(model, family))
        measured, calibration = _measure(trainer, sets, splits.problem_type, scale)
        if not trainer.is_world_process_zero():
            return None
    draft = Manifest(
        method=method.name,
        labels=splits.labels,
        problem_type=splits.problem_type,
        max_length=plan.max_length,
        pooling=plan.pooling,
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        base_name=base_model.name_of(run.base, fingerprint),
        base_fingerprint=fingerprint,
        weights_sha256="",
        # the stock classes take what peft gives them, ours keeps the positions
        positions="shifted" if method.at_attention and plan.pooling == "native" else "kept",
        training=_facts(splits, run.seed, plan, {**measured, **floors}, train_s),
    )
    manifest = adapter_writer.write(model, draft, run.output)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Outcome(run.output, manifest, trained)


def _facts(splits: Splits, seed: int, plan: Plan, measured: Mapping[str, Metric], train_s: float) -> TrainingFacts:
    return TrainingFacts(
        data_set=splits.name,
        num_train_rows=len(splits.train),
        num_validation_rows=len(splits.validation),
        seed=seed,
        recipe=asdict(plan),
        metrics=measured,
        train_s=round(train_s, 3),
        code_version=__version__,
        library_versions={name: version(name) for name in LIBRARIES},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _check_tracker(name: str) -> None:
    known = ["none", *get_available_reporting_integrations()]
    if name not in known:
        raise RecipeError(f"tracker `{name}` is unknown or not installed; there are: {', '.join(known)}")


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
    work.mkdir(parents=True, exist_ok=True)
    path = work / "run.json"
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in identity if held.get(name) != identity[name]]
        if different:
            raise RecipeError(
                f"`{work}` holds the checkpoints of a run with another {different[0]}; take another --work-dir"
            )
    path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _make_model(
    folder: Path, plan: Plan, method: Method[Any], family: Family, splits: Splits, texts: Texts
) -> PeftModel:
    base = PooledClassifier.load(str(folder), len(splits.labels), plan.pooling, splits.problem_type)
    if base.config.pad_token_id is None:
        # the stock decoder heads look for padding by its id: take one that no text has
        used = texts.token_ids()
        base.config.pad_token_id = next(i for i in range(base.config.vocab_size) if i not in used)
    if method.peft_module is not None:
        importlib.import_module(method.peft_module)
    config = method.peft_config(family, plan.options)
    if plan.pooling == "native":
        # peft saves the module that holds the last layer by itself, others only if they are named
        others = [name for name in head_modules(family.native_head(base.config)) if name != family.head]
        config.modules_to_save = others or None  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of merging adapters into the base, which is not done here
        return get_peft_model(base, config)


def _make_trainer(
    run: Run,
    plan: Plan,
    model: PeftModel,
    family: Family,
    problem_type: ProblemType,
    sets: Mapping[str, Texts],
    folder: Path,
) -> Trainer:
    device = base_model.choose_device("auto")
    bf16 = plan.precision == "bfloat16" or (plan.precision == "auto" and base_model.has_bfloat16(device))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        warmup_steps=plan.warmup,
        max_grad_norm=plan.max_grad_norm,
        lr_scheduler_type="linear",
        bf16=bf16,
        use_cpu=device.type == "cpu",
        train_sampling_strategy="group_by_length",
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="epoch" if run.work else "no",
        save_total_limit=1,
        report_to=run.report_to,
        seed=run.seed,
        disable_tqdm=not run.show_progress,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        data_collator=Padding(model.config.pad_token_id, family.takes_type_ids(model.config)),
        compute_metrics=lambda result: evaluation.watch(
            problem_type, np.asarray(result.label_ids), np.asarray(result.predictions, dtype=np.float64)
        ),
        optimizers=(_make_optimizer(model, plan), None),
    )
    # our loss is a mean already; otherwise it is multiplied by the number of processes, and clipped so
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    if run.show_progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar())
    return trainer


def _make_optimizer(model: PeftModel, plan: Plan) -> torch.optim.Optimizer:
    """AdamW with the head in a group of its own: it begins at random and needs a rate of its own."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    is_head = ".modules_to_save."  # what peft calls layers that are trained whole
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for name, parameter in named if is_head not in name],
            "lr": plan.learning_rate,
            "weight_decay": plan.weight_decay,
        },
        {
            "params": [parameter for name, parameter in named if is_head in name],
            "lr": plan.head_learning_rate,
            "weight_decay": HEAD_WEIGHT_DECAY,
        },
    ]
    return torch.optim.AdamW(groups)


def _last_layer(model: PeftModel, family: Family) -> nn.Linear:
    """The trained layer of the head that gives the logits."""
    layers = [
        module
        for name, module in model.named_modules()
        if f".{family.head}." in f"{name}." and isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    return layers[-1]


def _measure(
    trainer: Trainer, sets: Mapping[str, Texts], problem_type: ProblemType, scale: Scale | None
) -> tuple[dict[str, Metric], Calibration]:
    """The figures of validation and test, and what was chosen on the validation rows."""
    measured: dict[str, Metric] = {}
    calibration = Calibration()
    for split in ("validation", "test"):
        result = trainer.predict(sets[split])
        # the truth comes from the result: the Trainer sorts the rows by length
        truth: NDArray[Any] = np.asarray(result.label_ids)
        if scale is not None:
            truth = scale.restore(truth)
        logits: NDArray[np.float64] = np.asarray(result.predictions, dtype=np.float64)
        if not bool(np.isfinite(logits).all()):
            raise TrainingFailed("the logits are not finite any more: training diverged; take a lower learning rate")
        if split == "validation":
            calibration = evaluation.calibrate(problem_type, truth, logits)
        found = evaluation.measure(problem_type, truth, logits, calibration)
        measured |= {f"{split}_{name}": metric for name, metric in found.items()}
    return measured, calibration


def _truth(splits: Splits) -> dict[str, NDArray[Any]]:
    return {name: targets(rows, splits.labels, splits.problem_type) for name, rows in _by_name(splits).items()}


def _by_name(splits: Splits) -> dict[str, list[Row]]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}
