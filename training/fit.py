"""Fit a model to a data set: an adapter on a frozen base, or the whole base. What it answers is measured elsewhere."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import logging as transformers_logging

from server import base_model
from server.errors import DataError, TrainingFailed
from server.families import Family
from server.heads import head_modules
from server.manifest import ProblemType
from server.methods import Method
from server.number_format import is_bfloat16_faster
from server.tokenizer import Tokenizer
from training import evaluation
from training.checkpoints import last_checkpoint
from training.data import Splits, targets
from training.model import PooledClassifier, checkpoint_activations
from training.prediction import logits_of
from training.progress import Bar
from training.recipe import Plan, Trainable
from training.scale import Scale
from training.texts import Padding, Texts

EVALUATION_BATCH = 64
HEAD_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Work:
    """How a fit goes about it, none of which changes what it learns.

    folder: for what trackers and checkpoints write. num_evaluations: how often the validation rows are measured during
    training; null is after every pass.
    """

    folder: Path
    keeps_checkpoints: bool = False
    num_evaluations: int | None = None
    report_to: str = "none"
    name: str = "run"
    """By which trackers know it."""
    show_progress: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model, and what it answers.

    curve: step and watched figure of the validation rows, as training went on.
    """

    model: PeftModel | PreTrainedModel
    num_adapter_parameters: int
    num_head_parameters: int
    num_steps: int
    curve: tuple[tuple[int, float], ...]
    train_s: float
    train_cpu_s: float
    trainer: Trainer
    family: Family
    sets: Mapping[str, Texts]

    @property
    def is_first_process(self) -> bool:
        """Of those that train together, the one that writes."""
        return self.trainer.is_world_process_zero()

    @property
    def precision(self) -> str:
        """What `auto` has come to."""
        return "bfloat16" if self.trainer.args.bf16 else "float32"

    def predict(self, split: str) -> NDArray[np.float64]:
        """Logits of a split in the order of its rows [rows, labels], in float32 whatever it was trained in.

        Raises TrainingFailed if they are no numbers.
        """
        texts = self.sets[split]
        # half precision would round numbers in the data's own unit
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_fp32_wrapper=False)
        try:
            found = logits_of(model, self.family, texts.items)
        except DataError as error:
            raise TrainingFailed(
                "the logits are not finite any more: training diverged; take a lower learning rate"
            ) from error
        logits = np.empty_like(found)
        logits[texts.order] = found
        return logits


def fit(splits: Splits, folder: Path, method: Trainable, plan: Plan, seed: int, work: Work) -> Fitted:
    """Train on a data set, beginning with a fresh head on the base model in `folder`.

    The seed fixes the order of the rows and the initial weights: the head's are the same whatever the method.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    family = base_model.family_of_folder(folder)
    tokenizer, truth = Tokenizer(folder), true_answers(splits)
    has_bias = family.head_has_bias or plan.pooling != "native"
    scale = Scale.of(truth["train"], has_bias) if splits.problem_type == "regression" else None
    if scale is not None:
        truth = {name: scale.shrink(numbers) for name, numbers in truth.items()}
    sets = {
        # rows that are only measured are sorted by length, so that little is padded
        name: Texts(rows, truth[name], tokenizer, plan.max_length, sort=name != "train")
        for name, rows in splits.by_name().items()
    }
    set_seed(seed)
    model = make_model(folder, plan, method, family, splits, sets["train"])
    num_parameters = {True: 0, False: 0}
    for name, in_head in _in_head(model, family).items():
        num_parameters[in_head] += model.get_parameter(name).numel()
    trainer = _make_trainer(plan, model, family, splits.problem_type, sets, seed, work)
    began, began_cpu = time.perf_counter(), time.process_time()
    trainer.train(resume_from_checkpoint=last_checkpoint(work.folder) if work.keeps_checkpoints else None)
    train_s, train_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    if scale is not None:
        scale.fold(_last_layer(model, family))
    watched = f"eval_{evaluation.WATCHED[splits.problem_type]}"
    return Fitted(
        model=model,
        num_adapter_parameters=num_parameters[False],
        num_head_parameters=num_parameters[True],
        num_steps=trainer.state.global_step,
        curve=tuple((int(entry["step"]), entry[watched]) for entry in trainer.state.log_history if watched in entry),
        train_s=round(train_s, 3),
        train_cpu_s=round(train_cpu_s, 3),
        trainer=trainer,
        family=family,
        sets=sets,
    )


def true_answers(splits: Splits) -> dict[str, NDArray[Any]]:
    """What is right for the rows of every split, as `training.data.targets` has it."""
    return {name: targets(rows, splits.labels, splits.problem_type) for name, rows in splits.by_name().items()}


def make_model(
    folder: Path, plan: Plan, method: Trainable, family: Family, splits: Splits, texts: Texts
) -> PeftModel | PreTrainedModel:
    """The base with a fresh head and the method's adapter; a method that is none of PEFT's trains the base itself."""
    base = PooledClassifier.load(str(folder), len(splits.labels), plan.pooling, splits.problem_type, plan.quantize)
    if base.config.pad_token_id is None:
        # the stock decoder heads look for padding by its id: take one that no text has
        used = texts.token_ids()
        base.config.pad_token_id = next(i for i in range(base.config.vocab_size) if i not in used)
    if plan.dropout is not None:
        for module in base.modules():
            if isinstance(module, nn.Dropout):
                module.p = plan.dropout
    if base_model.choose_device("auto").type == "cpu":
        # the fused attention of the CPU is slower in half precision (docs/log.md)
        base.set_attn_implementation("eager")
    if plan.gradient_checkpointing:
        checkpoint_activations(base)
    if not isinstance(method, Method):
        return base
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


def make_optimizer(model: nn.Module, plan: Plan, family: Family) -> torch.optim.Optimizer:
    """AdamW with the head in a group of its own: it begins at random and needs a rate of its own."""
    in_head = _in_head(model, family)
    groups: list[dict[str, Any]] = [
        {
            "params": [model.get_parameter(name) for name in in_head if not in_head[name]],
            "lr": plan.learning_rate,
            "weight_decay": plan.weight_decay,
        },
        {
            "params": [model.get_parameter(name) for name in in_head if in_head[name]],
            "lr": plan.head_learning_rate,
            "weight_decay": HEAD_WEIGHT_DECAY,
        },
    ]
    return torch.optim.AdamW(groups)


class _Order(LengthGroupedSampler):
    """Rows of like lengths together, in an order that depends on seed and pass alone.

    From the common source of random numbers it would depend on what a method has drawn from that before.
    """

    seed = 0

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)


class _Trainer(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        texts = self.train_dataset if train_dataset is None else train_dataset
        order = _Order(self.args.train_batch_size * self.args.gradient_accumulation_steps, texts)
        order.seed = self.args.seed
        order.set_epoch(0)
        return order

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler[int] | None:
        return SequentialSampler(eval_dataset)


def _make_trainer(
    plan: Plan,
    model: PeftModel | PreTrainedModel,
    family: Family,
    problem_type: ProblemType,
    sets: Mapping[str, Texts],
    seed: int,
    work: Work,
) -> Trainer:
    device = base_model.choose_device("auto")
    bf16 = plan.precision == "bfloat16" or (plan.precision == "auto" and is_bfloat16_faster(device))
    measured = "epoch" if work.num_evaluations is None else "steps" if work.num_evaluations else "no"
    arguments = TrainingArguments(
        output_dir=str(work.folder),
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
        eval_strategy=measured,
        # a share of all steps; 1.0 itself would be read as every step
        eval_steps=min(1 / work.num_evaluations, 1 - 1e-9) if work.num_evaluations else None,
        save_strategy="epoch" if work.keeps_checkpoints else "no",
        save_total_limit=1,
        report_to=work.report_to,
        run_name=work.name,
        project="adaptermux",
        seed=seed,
        disable_tqdm=not work.show_progress,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        data_collator=Padding(model.config.pad_token_id, family.takes_type_ids(model.config)),
        compute_metrics=lambda result: evaluation.watch(
            problem_type, np.asarray(result.label_ids), np.asarray(result.predictions, dtype=np.float64)
        ),
        optimizers=(make_optimizer(model, plan, family), None),
    )
    # our loss is a mean already; otherwise it is multiplied by the number of processes, and clipped so
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    if work.show_progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar())
    return trainer


def _in_head(model: nn.Module, family: Family) -> dict[str, bool]:
    """Every trained parameter's name, and whether it is the head's."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if isinstance(model, PeftModel):
        return {name: ".modules_to_save." in name for name in names}  # what peft calls layers that are trained whole
    return {name: not name.startswith(f"{family.prefix}.") for name in names}


def _last_layer(model: nn.Module, family: Family) -> nn.Linear:
    """The trained layer of the head that gives the logits."""
    layers = [
        module
        for name, module in model.named_modules()
        if f".{family.head}." in f".{name}." and isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    return layers[-1]
