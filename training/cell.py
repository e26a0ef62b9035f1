"""Run one cell of a comparison and say what came of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoConfig

from decision.provenance import provenance
from decision.rows import FULL, MAJORITY, PROBE, WORDS, Predictions, QualityRow, TrainedRow, TrialRow
from server import base_model
from server.errors import DataError, TrainingFailed
from server.methods import Method, method_named
from training import baselines, metrics
from training.data import Splits, load
from training.fit import Work, fit, true_answers
from training.floor import USUAL_STRENGTH, Predict, fit_words
from training.grid_plan import STRENGTH, Cell
from training.metrics import Values
from training.peak_memory import peak_memory_bytes
from training.recipe import Plan
from training.run import keep


@dataclass(frozen=True, slots=True)
class _Made:
    """A classifier that was made. predict: logits of a split [rows, labels]; num_bytes: of its file, head included."""

    predict: Predict
    recipe: Mapping[str, Any]
    train_s: float = 0.0
    train_cpu_s: float = 0.0
    num_adapter_parameters: int = 0
    num_head_parameters: int = 0
    num_bytes: int = 0
    num_steps: int = 0
    peak_memory_bytes: int | None = None
    curve: tuple[tuple[int, float], ...] = ()


def run_cell(cell: Cell, command: str, is_alone: bool = False, folder: Path | None = None) -> TrainedRow:
    """Make the cell's classifier and measure it: a trial on validation rows only, a final run once on test.

    is_alone: the process has done nothing else, so that its memory is the cell's. folder: where to write the adapter,
    none for baselines. A final run that diverged counts: it answers the commonest training label, since a comparison
    without it would make its method look better. Raises DataError, RecipeError, BaseModelError, and TrainingFailed
    where an adapter that diverged was to be written.
    """
    splits = read_data(cell)
    with TemporaryDirectory() as scratch:
        made = _make(cell, splits, Path(scratch), folder)
        if not cell.is_final:
            try:
                return TrialRow(**_common(cell, made, splits, made.predict("validation"), command))
            except TrainingFailed as error:
                return _diverged(cell, splits, command, str(error))
        failure = None
        try:
            validation, test = made.predict("validation"), made.predict("test")
        except TrainingFailed as error:
            constant, failure = baselines.fit_majority(splits), str(error)
            validation, test = constant("validation"), constant("test")
        row = _measure(cell, made, splits, validation, test, command)
        peak = made.peak_memory_bytes if is_alone else None
        return row.model_copy(update={"peak_memory_bytes": peak, "failure": failure})


def read_data(cell: Cell) -> Splits:
    """The cell's rows. Raises DataError."""
    splits = load(
        cell.data, cell.train_rows, cell.seed, cell.columns, "single_label", cell.validation_rows, cell.test_rows
    )
    if len(splits.labels) < 2:
        raise DataError(f"`{cell.data}` has one label only; a comparison needs two or more")
    return splits


def settle(cell: Cell, folder: Path) -> Plan:
    """The cell's recipe with nothing left open. Raises RecipeError."""
    family = base_model.family_of_folder(folder)
    # what trains nothing of the base reads texts as a full fine-tuning does
    method = baselines.FullFineTuning() if cell.is_baseline else method_named(cell.method)
    limit = family.length_limit(AutoConfig.from_pretrained(folder))
    return cell.settled().settle(method, family, cell.train_rows, limit)


def _make(cell: Cell, splits: Splits, scratch: Path, output: Path | None) -> _Made:
    folder = base_model.locate(cell.base)
    plan = settle(cell, folder)
    if cell.method != FULL and cell.is_baseline:
        return _make_baseline(cell, splits, folder, plan)
    method = baselines.FullFineTuning() if cell.method == FULL else method_named(cell.method)
    fitted = fit(splits, folder, method, plan, cell.seed, Work(scratch, num_evaluations=cell.num_evaluations))
    peak = peak_memory_bytes()
    if output is not None and isinstance(method, Method):
        keep(fitted, splits, method, plan, cell.base, cell.seed, output)
    return _Made(
        predict=fitted.predict,
        recipe=asdict(plan) | {"precision": fitted.precision},
        train_s=fitted.train_s,
        train_cpu_s=fitted.train_cpu_s,
        num_adapter_parameters=fitted.num_adapter_parameters,
        num_head_parameters=fitted.num_head_parameters,
        num_bytes=_file_bytes(fitted.model, scratch) if cell.is_final else 0,
        num_steps=fitted.num_steps,
        peak_memory_bytes=peak,
        curve=fitted.curve,
    )


def _make_baseline(cell: Cell, splits: Splits, folder: Path, plan: Plan) -> _Made:
    """One that trains nothing of the base. Raises DataError where it cannot be fitted."""
    began, began_cpu = time.perf_counter(), time.process_time()
    settings, num_parameters = dict(cell.settings), 0
    if cell.method != MAJORITY:
        settings.setdefault(STRENGTH, USUAL_STRENGTH)
    try:
        if cell.method == MAJORITY:
            predict = baselines.fit_majority(splits)
        elif cell.method == WORDS:
            predict = fit_words(splits, settings[STRENGTH])
        else:
            assert cell.method == PROBE, f"baseline `{cell.method}` is in the list but cannot be made; this is a bug"
            predict = baselines.fit_probe(splits, folder, plan, settings[STRENGTH])
            num_parameters = len(splits.labels) * (AutoConfig.from_pretrained(folder).hidden_size + 1)
    except ValueError as error:  # scikit-learn's: no words, or one label only
        raise DataError(
            f"`{cell.method}` cannot be fitted to {cell.train_rows} rows of `{cell.data}`: {error}"
        ) from error
    return _Made(
        predict=predict,
        recipe=settings,
        train_s=round(time.perf_counter() - began, 3),
        train_cpu_s=round(time.process_time() - began_cpu, 3),
        num_head_parameters=num_parameters,
        num_bytes=4 * num_parameters,
    )


def _measure(cell: Cell, made: _Made, splits: Splits, validation: Values, test: Values, command: str) -> QualityRow:
    """validation, test: logits of those rows [rows, labels]."""
    truth = true_answers(splits)
    temperature = metrics.fit_temperature(validation, truth["validation"])
    predicted: NDArray[np.int64] = test.argmax(1)
    return QualityRow(
        **_common(cell, made, splits, validation, command),
        num_labels=len(splits.labels),
        is_pair=splits.train[0].text_pair is not None,
        test_accuracy=float((predicted == truth["test"]).mean()),
        test_macro_f1=metrics.macro_f1(truth["test"], predicted, len(splits.labels)).value,
        test_ece=metrics.expected_calibration_error(_softmax(test), truth["test"]),
        test_ece_calibrated=metrics.expected_calibration_error(_softmax(test / temperature), truth["test"]),
        temperature=temperature,
        num_adapter_parameters=made.num_adapter_parameters,
        num_head_parameters=made.num_head_parameters,
        adapter_bytes=made.num_bytes,
        num_steps=made.num_steps,
        curve=list(made.curve),
        predictions=Predictions.pack(truth["test"], predicted),
    )


def _common(cell: Cell, made: _Made, splits: Splits, validation: Values, command: str) -> dict[str, Any]:
    """What trials and final runs have in common. validation: logits of those rows [rows, labels]."""
    truth = true_answers(splits)["validation"]
    likelihood = _softmax(validation)[np.arange(len(truth)), truth]
    return _identity(cell, splits, command) | {
        "recipe": dict(made.recipe),
        "validation_accuracy": float((validation.argmax(1) == truth).mean()),
        "validation_nll": float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
        "train_cpu_s": made.train_cpu_s,
        "train_s": made.train_s,
    }


def _diverged(cell: Cell, splits: Splits, command: str, reason: str) -> TrialRow:
    return TrialRow(
        **_identity(cell, splits, command),
        recipe=dict(cell.settings),
        validation_accuracy=0,
        validation_nll=None,
        train_cpu_s=0,
        train_s=0,
        failure=reason,
    )


def _identity(cell: Cell, splits: Splits, command: str) -> dict[str, Any]:
    return {
        "plan": cell.plan,
        "cell": cell.key,
        "task": cell.task,
        "candidate": cell.candidate,
        "method": cell.method,
        "train_rows": cell.train_rows,
        "seed": cell.seed,
        "data_sha256": hashlib.sha256(repr(splits.by_name()).encode()).hexdigest(),
        "provenance": provenance(command),
    }


def _file_bytes(model: Any, scratch: Path) -> int:
    """Of the adapter as it would be saved; of a whole model, its weights."""
    if not isinstance(model, PeftModel):
        return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    folder = scratch / "saved"
    model.save_pretrained(str(folder))
    return (folder / "adapter_model.safetensors").stat().st_size


def _softmax(logits: Values) -> Values:
    from scipy.special import softmax

    found: Values = softmax(logits, axis=1)
    return found
