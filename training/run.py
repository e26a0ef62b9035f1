"""Train one adapter: a recipe on a data set, measured on validation and test, written as a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from server import __version__, base_model
from server.errors import RecipeError
from server.families import Family
from server.manifest import Manifest, Metric, TrainingFacts
from server.methods import Method, method_named
from server.tokenizer import Tokenizer
from training import adapter_writer, metrics
from training.data import Columns, Row, Splits, load
from training.model import PooledClassifier
from training.recipe import Recipe

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
    floor: Metric


def train(run: Run) -> Outcome:
    """Train, measure and write one adapter. Raises DataError, RecipeError or BaseModelError."""
    adapter_writer.check_target(run.output, run.overwrite)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    method = method_named(run.method)
    names, folder = base_model.locate(run.base)
    family = base_model.family_of_folder(folder)
    splits = load(run.data, run.train_rows, run.seed, run.columns)
    recipe = run.recipe.completed(method, len(splits.train))
    max_length = _max_length(recipe, folder)

    set_seed(run.seed)
    model, pooling = _make_model(run, recipe, method, family, len(splits.labels))
    tokenizer = Tokenizer(folder)
    sets = {name: _Texts(rows, splits.labels, tokenizer, max_length) for name, rows in _by_name(splits).items()}
    with TemporaryDirectory() as scratch:
        trainer = _make_trainer(run, recipe, model, family, sets, run.work or Path(scratch))
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=_last_checkpoint(run.work))
        train_s = time.perf_counter() - began
        measured, temperature = _measure(trainer, sets, splits)
    facts = TrainingFacts(
        data_set=splits.name,
        num_train_rows=len(splits.train),
        num_validation_rows=len(splits.validation),
        seed=run.seed,
        recipe=recipe.model_copy(update={"pooling": pooling, "max_length": max_length}).model_dump(),
        metrics=measured,
        train_s=round(train_s, 3),
        code_version=__version__,
        library_versions={name: version(name) for name in LIBRARIES},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    draft = Manifest(
        method=method.name,
        labels=splits.labels,
        problem_type="single_label",
        max_length=max_length,
        pooling=pooling,
        temperature=temperature,
        base_name=names[0],
        base_fingerprint=base_model.fingerprint(folder),
        weights_sha256="",
        training=facts,
    )
    manifest = adapter_writer.write(model, draft, run.output)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Outcome(run.output, manifest, trained, measured["floor_test_accuracy"])


def _max_length(recipe: Recipe, folder: Path) -> int:
    from transformers import AutoConfig

    limit = int(AutoConfig.from_pretrained(folder).max_position_embeddings)
    if recipe.max_length is not None and recipe.max_length > limit:
        raise RecipeError(f"`max_length` is {recipe.max_length}, the base model reads at most {limit} tokens")
    return recipe.max_length or limit


def _make_model(
    run: Run, recipe: Recipe, method: Method[Any], family: Family, num_labels: int
) -> tuple[PeftModel, Any]:
    pooling = recipe.pooling or family.default_pooling
    base = PooledClassifier.load(run.base, num_labels, pooling)
    if base.config.pad_token_id is None:
        base.config.pad_token_id = 0
    model = get_peft_model(base, method.peft_config(family, recipe.options))
    return model, pooling


def _make_trainer(
    run: Run, recipe: Recipe, model: PeftModel, family: Family, sets: Mapping[str, _Texts], folder: Path
) -> Trainer:
    device = base_model.choose_device("auto")
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and base_model.has_bfloat16(device))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs or 0,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        warmup_steps=recipe.warmup,
        max_grad_norm=recipe.max_grad_norm,
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
        data_collator=_Padding(model.config.pad_token_id, family.uses_type_ids),
        compute_metrics=lambda result: {
            "accuracy": float((np.asarray(result.predictions).argmax(-1) == result.label_ids).mean())
        },
        optimizers=(_make_optimizer(model, recipe, family), None),
    )
    trainer.remove_callback(PrinterCallback)
    if run.show_progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Bar())
    return trainer


def _make_optimizer(model: PeftModel, recipe: Recipe, family: Family) -> torch.optim.Optimizer:
    """AdamW with the head in a group of its own: it begins at random and needs a rate of its own."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    is_head = f".{family.head}."
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for name, parameter in named if is_head not in name],
            "lr": recipe.learning_rate,
            "weight_decay": recipe.weight_decay,
        },
        {
            "params": [parameter for name, parameter in named if is_head in name],
            "lr": recipe.head_learning_rate,
            "weight_decay": HEAD_WEIGHT_DECAY,
        },
    ]
    return torch.optim.AdamW(groups)


def _measure(trainer: Trainer, sets: Mapping[str, _Texts], splits: Splits) -> tuple[dict[str, Metric], float]:
    """Metrics on validation and test, and the temperature that fits the validation rows."""
    measured, temperature = {}, 1.0
    for name in ("validation", "test"):
        result = trainer.predict(sets[name])
        truth: NDArray[np.int64] = np.asarray(result.label_ids, dtype=np.int64)
        logits: NDArray[np.float64] = np.asarray(result.predictions, dtype=np.float64)
        measured[f"{name}_accuracy"] = metrics.accuracy(truth, logits.argmax(-1))
        measured[f"{name}_macro_f1"] = metrics.macro_f1(truth, logits.argmax(-1), len(splits.labels))
        if name == "validation":
            temperature = metrics.fit_temperature(logits, truth)
    measured["floor_test_accuracy"] = metrics.floor_accuracy(splits.train, splits.test)
    return measured, temperature


def _by_name(splits: Splits) -> dict[str, list[Row]]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def _last_checkpoint(work: Path | None) -> str | None:
    return get_last_checkpoint(str(work)) if work is not None and work.is_dir() else None


class _Texts(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as token ids, with the tokenizer that the server uses."""

    def __init__(self, rows: Sequence[Row], labels: Sequence[str], tokenizer: Tokenizer, max_length: int) -> None:
        index = {label: position for position, label in enumerate(labels)}
        self.items: list[dict[str, Any]] = []
        for row in rows:
            encoded = tokenizer.encode(row.text, row.text_pair, max_length, truncate=True, field="text")
            self.items.append(
                {"input_ids": encoded.token_ids, "token_type_ids": encoded.type_ids, "labels": index[row.label]}
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.items[position]


@dataclass(frozen=True, slots=True)
class _Padding:
    """Pads a batch on the right to its longest text."""

    pad_id: int
    uses_type_ids: bool

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.tensor(item["input_ids"]) for item in items]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
            "labels": torch.tensor([item["labels"] for item in items]),
        }
        if self.uses_type_ids:
            types = [torch.tensor(item["token_type_ids"]) for item in items]
            batch["token_type_ids"] = pad_sequence(types, batch_first=True)
        return batch


class _Bar(ProgressCallback):
    """The Trainer's progress bar, with the latest figures beside it instead of lines and bars of their own."""

    def on_prediction_step(self, *_: object, **__: object) -> None:
        """Measuring takes a moment: no bar for it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        if self.training_bar is not None and logs:
            shown = {name: f"{logs[name]:.3f}" for name in ("loss", "eval_accuracy") if name in logs}
            self.training_bar.set_postfix(shown)
